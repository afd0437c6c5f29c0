"""Two real processes (gloo) give the losses and the bank of one, to rounding."""

import torch
import torch.multiprocessing as mp

from soe_model.sharding import Sharding
from tests.soe_model.test_training import B, make_batch, make_trainer


def _rank(rank, world_size, port, results):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    trainer = make_trainer()
    slots = slice(rank * B // world_size, (rank + 1) * B // world_size)
    losses = []
    for number in range(4):
        tokens, mixture, weights = make_batch(number)
        losses.append(trainer.train_step(tokens[slots], mixture[slots], weights).loss)
    experts = trainer.sharding.gather(trainer.bank.experts_Np)
    shared = trainer.sharding.gather(trainer.bank.shared_p[None])[0]
    if rank == 0:
        results.put((losses, experts.numpy(), shared.numpy(), trainer.router.params_P.numpy()))
    dist.barrier()
    dist.destroy_process_group()


def test_two_workers_give_the_same_losses_and_bank(free_tcp_port):
    alone = make_trainer()
    expected = [alone.train_step(*make_batch(number)).loss for number in range(4)]
    context = mp.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_rank, args=(r, 2, free_tcp_port, results)) for r in range(2)]
    for worker in workers:
        worker.start()
    losses, experts, shared, router = results.get(timeout=60)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(experts), alone.bank.experts_Np, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(torch.from_numpy(shared), alone.bank.shared_p, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(torch.from_numpy(router), alone.router.params_P, rtol=1e-3, atol=2e-5)


def test_columns_cover_every_parameter_once():
    for num_params in (1, 7, 8, 64):
        for world_size in (1, 2, 3, 8):
            shards = [
                Sharding(num_params=num_params, rank=r, world_size=world_size) for r in range(world_size)
            ]
            covered = [c for s in shards for c in range(s.columns.start, s.columns.stop)]
            assert covered == list(range(num_params))
            assert {len(s.shard(torch.zeros(num_params))) for s in shards} == {shards[0].width}
