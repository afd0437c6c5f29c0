"""Two and four real processes (gloo) give the losses and the bank of one, to rounding."""

import socket

import pytest
import torch
import torch.multiprocessing as mp

from soe_model.model.sharding import Sharding
from tests.soe_model.training.test_trainer import make_batch, make_trainer

B = 12
GENERIC = dict(train_generic=True, generic_K=torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1]))
VARIANTS = {
    "adam": dict(mixtures_per_step=3),
    "one-mixture": dict(mixtures_per_step=1),
    "mixture-a-rank": dict(mixtures_per_step=4),
    "factored-int8": dict(mixtures_per_step=2, optimizer="factored-int8"),
    "low-rank": dict(mixtures_per_step=2, expert_rank=2),
    "generic-too": dict(mixtures_per_step=3, **GENERIC),
    "low-rank-generic-too": dict(mixtures_per_step=1, expert_rank=2, **GENERIC),
}


def _trained(variant, share=slice(None)):
    """Losses, what a model is made of, and the experts' inner products, after four steps on a share of the slots."""
    settings = VARIANTS[variant]
    trainer = make_trainer(batch_size=B, **settings)
    losses = []
    for number in range(4):
        tokens, mixture, weights = make_batch(number, batch_size=B, mixtures=settings["mixtures_per_step"])
        losses.append(trainer.train_step(tokens[share], mixture[share], weights).loss)
    coefficients = torch.eye(trainer.soup.num_experts)
    return (
        torch.tensor(losses),
        trainer.bank.instances(coefficients),
        trainer.router.params_P,
        trainer.bank.gram(),
    )


def _rank(rank, world_size, port, results):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    share = slice(rank * B // world_size, (rank + 1) * B // world_size)
    for variant in VARIANTS:
        found = _trained(variant, share)
        if rank == world_size - 1:
            results.put((variant, [tensor.detach().numpy() for tensor in found]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.long)])
def of_several(request):
    """What so many processes found, by variant; started once, because each of them imports torch."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_rank, args=(r, request.param, port, results)) for r in range(request.param)
    ]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=180) for _ in VARIANTS)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    return found


@pytest.mark.xdist_group("sharding")
@pytest.mark.parametrize("variant", VARIANTS)
def test_several_workers_give_the_same_losses_and_bank(of_several, variant):
    expected = _trained(variant)
    losses, *rest = (torch.from_numpy(array) for array in of_several[variant])
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=1e-6)
    for tensor, alone in zip(rest, expected[1:], strict=True):
        # A sum in another order may round an 8-bit moment the other way: of that optimizer, but for one in a hundred.
        far = ~torch.isclose(tensor, alone, rtol=1e-4, atol=1e-5)
        assert far.double().mean() <= (0.01 if variant == "factored-int8" else 0)


def test_columns_cover_every_parameter_once():
    for num_params in (1, 1023, 1024, 5000):
        for world_size in (1, 2, 3, 8):
            shards = [
                Sharding(num_params=num_params, rank=r, world_size=world_size) for r in range(world_size)
            ]
            covered = [c for s in shards for c in range(s.columns.start, s.columns.stop)]
            assert covered == list(range(num_params))
            assert {len(s.shard(torch.zeros(num_params))) for s in shards} == {shards[0].width}


@pytest.mark.parametrize(("num_mixtures", "world_size"), [(1, 4), (3, 2), (4, 4), (8, 2), (6, 4), (2, 8)])
def test_a_rank_owns_the_mixtures_of_its_slots(num_mixtures, world_size):
    slots = 8 * 3 * num_mixtures
    mixture = torch.arange(slots) * num_mixtures // slots
    for rank in range(world_size):
        mine = mixture[rank * slots // world_size : (rank + 1) * slots // world_size].unique().tolist()
        sharding = Sharding(num_params=1, rank=rank, world_size=world_size)
        assert list(sharding.owned(num_mixtures)) == mine
