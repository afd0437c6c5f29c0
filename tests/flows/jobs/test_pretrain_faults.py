"""What a pretraining run does when something breaks: damaged checkpoints, NaN, memory.

Every disturbed run must leave the soup of the undisturbed one, bit for bit where the number of workers is the same.
"""

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch

from flows.jobs import pretrain_soe
from flows.settings import Pretrain
from flows.training import fatal_errors as endings
from flows.training import resolve_run as run_plan
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from tests import extras
from tests.flows.jobs.test_pretrain_soe import SETTINGS, home, losses, one_worker  # noqa: F401  (fixtures)

STATE = "checkpoint_manager_snapshot.json"


class Job:
    """The job as a process of its own, on the session's cluster or on one that it starts."""

    def __init__(self, name, *, own_cluster=False, address=None, code="", variables=None, **changes):
        self.settings = Pretrain(name=name, **SETTINGS | changes)
        self.log = Path(os.environ["SOE_HOME"]) / f"{name}.log"
        environment = os.environ | (variables or {})
        if not own_cluster:
            environment["RAY_ADDRESS"] = address or ray.get_runtime_context().gcs_address
        main = f"{code}\nfrom flows.jobs import pretrain_soe as p, runner\nrunner.main(p.Pretrain, p.run)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", main, "--config", self.settings.model_dump_json(exclude_unset=True)],
            env=environment,
            stdout=open(self.log, "w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_for(self, reached):
        deadline = time.monotonic() + 240
        while not reached():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self, seconds=400):
        """The exit code and all that was printed."""
        return self.process.wait(timeout=seconds), self.log.read_text()


def registered(run, step):
    """Whether Ray has registered the checkpoint of that step (or a later one)."""
    path = run / STATE
    with contextlib.suppress(OSError, ValueError):
        names = [entry["checkpoint_dir_name"] for entry in json.loads(path.read_text())["checkpoint_results"]]
        return any(int(name.split("-")[1]) >= step for name in names)
    return False


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


LONG = dict(steps=160, checkpoint_every=40)
"""Enough steps to be killed in their middle."""


@pytest.fixture(scope="module")
def undisturbed(home):  # noqa: F811
    return pretrain_soe.run(Pretrain(name="undisturbed", **SETTINGS | LONG))


def newest(run):
    return json.loads((run / STATE).read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]


@pytest.mark.faults
def test_behind_a_damaged_checkpoint_the_run_goes_on_from_the_one_before(home, undisturbed):  # noqa: F811
    """The damaged step comes again, under another name: Ray must not delete one for the other."""
    job = Job("damaged", **LONG)
    run = home / "runs" / "damaged"
    job.wait_for(lambda: registered(run, 80))
    job.kill()
    time.sleep(2)
    name = newest(run)
    _flip(next((run / name).glob("rank-*.safetensors")))
    code, log = Job("damaged", **LONG).end()
    assert code == 0 and f"checkpoint {name} is damaged: {run / name}" in log and "resuming at step" in log, (
        log
    )
    assert json.loads(log.split("soe-summary ")[1].splitlines()[0])["digest"] == undisturbed["digest"]
    assert losses(home, "damaged") == losses(home, "undisturbed")
    left = json.loads((run / STATE).read_text())["checkpoint_results"]
    assert all((run / entry["checkpoint_dir_name"] / "checkpoint.json").exists() for entry in left)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _title(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def training_workers():
    """Processes of Ray Train's workers, of any cluster on this machine that these tests started."""
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if p.is_running() and "RayTrainWorker" in _title(p)]


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["a list cut off", "a folder gone"])
def test_a_damaged_list_of_checkpoints_is_made_anew(home, undisturbed, damage):  # noqa: F811
    name = damage.replace(" ", "-")
    job = Job(name, **LONG)
    run = home / "runs" / name
    job.wait_for(lambda: registered(run, 80))
    job.kill()
    time.sleep(2)
    if damage == "a list cut off":
        _cut(run / STATE)
    else:
        shutil.rmtree(run / newest(run))
    code, log = Job(name, **LONG).end()
    assert code == 0 and "it was made anew from the whole checkpoints: step-" in log, log
    assert "resuming at step" in log
    assert json.loads(log.split("soe-summary ")[1].splitlines()[0])["digest"] == undisturbed["digest"]


@pytest.mark.faults
def test_with_every_checkpoint_damaged_the_run_says_which(home):  # noqa: F811
    job = Job("lost", **LONG)
    run = home / "runs" / "lost"
    job.wait_for(lambda: registered(run, 40))
    job.kill()
    time.sleep(2)
    folders = [
        run / e["checkpoint_dir_name"] for e in json.loads((run / STATE).read_text())["checkpoint_results"]
    ]
    for folder in folders:
        _cut(folder / "checkpoint.json")
    code, log = Job("lost", **LONG).end()
    # Ray's own processes may have something to say after the job's last line.
    [last] = [line for line in log.splitlines() if line.startswith("error: ")]
    assert code == 2 and last.startswith("error: no checkpoint of"), log
    assert all(str(folder) in last for folder in folders) and "Put the files back" in last


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["worker in mid-step", "worker in mid-checkpoint", "driver"])
def test_a_killed_process_changes_nothing(home, undisturbed, victim):  # noqa: F811
    name = "killed-" + victim.replace(" ", "-")
    run = home / "runs" / name
    job = Job(name, **LONG)
    if victim == "worker in mid-checkpoint":
        # The folder is there as soon as its first file is begun, and is registered some seconds later.
        job.wait_for(lambda: (run / "step-000000080").exists() and not registered(run, 80))
    else:
        job.wait_for(lambda: registered(run, 40))
    if victim == "driver":
        job.kill()
        time.sleep(2)
        job = Job(name, **LONG)
    else:
        workers = training_workers()
        assert workers
        workers[0].kill()
    code, log = job.end()
    assert code == 0 and "resuming at step" in log, log
    assert json.loads(log.split("soe-summary ")[1].splitlines()[0])["digest"] == undisturbed["digest"]
    assert losses(home, name) == losses(home, "undisturbed")


@pytest.mark.faults
def test_a_killed_node_changes_nothing(home, undisturbed):  # noqa: F811
    """All of a local cluster's processes, and the driver with them."""
    job = Job("node", own_cluster=True, **LONG)
    job.wait_for(lambda: registered(home / "runs" / "node", 40))
    for process in psutil.Process(job.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.kill()
    code, log = Job("node", own_cluster=True, **LONG).end()
    assert code == 0 and "resuming at step" in log, log
    assert json.loads(log.split("soe-summary ")[1].splitlines()[0])["digest"] == undisturbed["digest"]


CALM = dict(
    steps=300, warmup_steps=100, checkpoint_every=40, learning_rate=3e-4, expert_learning_rate=3e-4,
    router_learning_rate=3e-4,
)  # fmt: skip
"""Rates at which a sum's other rounding stays within 1e-6 of the loss for 300 steps, where one lost batch costs 4e-3
(tests/benchmarks/rounding.py). At the preset's rates the one grows to the other within 200 steps."""


@pytest.fixture(scope="module")
def steady(home):  # noqa: F811
    pretrain_soe.run(Pretrain(name="steady", **SETTINGS | CALM))
    return losses(home, "steady")


def drain(cluster, node) -> None:
    """Tell the node that it will be taken away in some seconds, and take it away."""
    seconds = 5
    told = subprocess.run(
        [
            *(Path(sys.executable).parent / "ray", "drain-node", "--address", cluster.address),
            *("--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "the test", "--deadline-remaining-seconds", str(seconds)),
        ],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told
    time.sleep(seconds)
    cluster.remove_node(node, allow_graceful=True)


def lose(cluster, node) -> None:
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.faults
@pytest.mark.parametrize("take_away", [lose, drain])
def test_workers_go_and_come(home, steady, take_away):  # noqa: F811
    """2 -> 1 -> 2 workers as a node goes and another comes: the same losses. One of three CPUs is for the data."""
    from ray.cluster_utils import Cluster

    name = f"elastic-{take_away.__name__}"
    # Ray takes half a minute to see that a node is gone, and some seconds for a new one.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        second = cluster.add_node(num_cpus=1)
        workers = dict(num_workers=2, min_workers=1, resize_check_seconds=3)
        job = Job(name, address=cluster.address, **workers, **CALM)
        job.wait_for(lambda: registered(home / "runs" / name, 40))
        take_away(cluster, second)
        job.wait_for(lambda: "on 1 workers" in job.log.read_text())
        cluster.add_node(num_cpus=1)
        job.wait_for(lambda: "on 2 workers" in job.log.read_text())
        code, log = job.end()
        assert code == 0, log
    finally:
        cluster.shutdown()
    found = losses(home, name)
    assert found.keys() == steady.keys()
    for step, loss in found.items():
        assert abs(loss - steady[step]) < 1e-5, (step, loss, steady[step])


@pytest.mark.faults
def test_the_clock_jumps(home, undisturbed, tmp_path):  # noqa: F811
    """A day ahead, then two back, for every process of a cluster and its run."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    extras.needs_program("gcc")
    library, clock = tmp_path / "clock.so", tmp_path / "clock"
    source = Path(__file__).with_name("jumping_clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    clock.write_bytes(struct.pack("q", 0))
    job = Job(
        "clock", own_cluster=True, variables={"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(clock)}, **LONG
    )
    run, day = home / "runs" / "clock", 86_400
    for step, ahead in ((40, day), (80, -day), (120, 0)):
        job.wait_for(lambda step=step: (run / "log.jsonl").exists() and step in losses(home, "clock"))
        with open(clock, "r+b") as file:
            file.write(struct.pack("q", ahead))
    code, log = job.end()
    assert code == 0, log
    assert json.loads(log.split("soe-summary ")[1].splitlines()[0])["digest"] == undisturbed["digest"]
    assert losses(home, "clock") == losses(home, "undisturbed")
    events = next((run / "tensorboard").glob("events.*"))
    times = [event.wall_time for event in EventFileLoader(str(events)).Load()]
    assert max(times) - min(times) > 1.9 * day  # it did jump


def test_a_loss_that_is_not_finite_ends_the_run_at_once(home):  # noqa: F811
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"has diverged: step \d+: .* mixture 0 of domains \d \(") as raised:
        pretrain_soe.run(Pretrain(name="nan", **SETTINGS | {"learning_rate": 1e30, "checkpoint_every": 1}))
    assert "Lower the learning rates" in str(raised.value) and time.monotonic() - started < 60
    state = json.loads((home / "runs" / "nan" / STATE).read_text())
    step = int(str(raised.value).split("At step ")[1].split(":")[0])
    assert state["latest_checkpoint_result"]["metrics"]["step"] == step  # the steps done before it, from 0
    assert not (home / "soups" / "nan").exists()


@pytest.mark.faults
def test_out_of_memory_says_what_was_asked_and_what_helps(home, monkeypatch):  # noqa: F811
    """Where the reckoning before the run was wrong."""
    for check in ("check_fits", "check_disk"):
        monkeypatch.setattr(pretrain_soe, check, lambda *_, **__: None)
    with pytest.raises(ValueError, match="ran out of memory with preset tiny, 1000000000 experts") as raised:
        pretrain_soe.run(Pretrain(name="huge", **SETTINGS | {"num_experts": 10**9}))
    for word in ("optimizer adam", "micro_batch_size", "more workers", "soe plan"):
        assert word in str(raised.value)


def test_what_is_out_of_memory():
    class WorkerGroupError(RuntimeError):
        worker_failures = {0: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")}

    class Killed(RuntimeError):
        health_check_failure = ray.exceptions.OutOfMemoryError("the node is running low on memory")

    assert endings.is_out_of_memory(WorkerGroupError("rank 0"))
    assert endings.is_out_of_memory(Killed("rank 0"))
    assert endings.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not endings.is_out_of_memory(RuntimeError("the stream gave step 3"))
    assert not endings.is_out_of_memory(OSError("not enough memory cards"))


def test_a_message_names_the_heaviest_domains():
    weights_WK = np.full((1, 20), 0.01)
    weights_WK[0, 7] = 0.5
    message = endings.not_finite(3, [0], weights_WK, "loss nan.")
    assert "mixture 0 of domains 7 (0.5), 0 (0.01)" in message and "and 12 more" in message


@pytest.mark.faults
def test_logical_gpus_without_cuda_are_refused_before_any_worker_starts(home):  # noqa: F811
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code = "import ray; ray.init(address='local', num_cpus=4, num_gpus=2, include_dashboard=False)"
    code, log = Job("gpus", own_cluster=True, code=code, num_workers=2, use_gpu=True).end()
    assert code == 2 and "counts GPUs, but torch sees none" in log.strip().splitlines()[-1], log
    assert not (home / "runs" / "gpus").exists()


@pytest.mark.parametrize(
    ("range_", "sizes"), [((8, 1, 8), [1, 2, 4, 8]), ((12, 2, 6), [2, 3, 4, 6]), ((8, 4, 4), [4])]
)
def test_only_world_sizes_that_share_the_batch_evenly(range_, sizes):
    assert run_plan.world_sizes(*range_) == sizes


def test_a_group_is_as_large_as_the_cluster_allows_but_shares_the_batch_evenly(monkeypatch):
    from ray.train import ScalingConfig

    from flows.training.ray_internals.even_scaling import EvenScalingPolicy

    policy = EvenScalingPolicy(ScalingConfig(num_workers=(2, 8)), allowed=[2, 4, 8])

    def possible(cpus, in_all):
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": in_all})
        return policy._count_possible_workers({"node": {"CPU": cpus}})

    assert [possible(cpus, 99) for cpus in (1, 2, 3, 7, 8, 20)] == [0, 2, 2, 4, 8, 8]
    # One CPU of the cluster is left to the data.
    assert [possible(20, in_all) for in_all in (2, 3, 5, 8, 9)] == [0, 2, 4, 4, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_workers": 3, "num_workers": 2}, "min_workers is 3 and num_workers, the maximum, is 2"),
        ({"min_workers": 1, "num_workers": 3}, "batch_size 8 is not a multiple of the 3 workers"),
        ({"backbone": {"hidden_size": 8}}, "a backbone needs a model_type"),
        ({"backbone": {"model_type": "nonsense"}}, "nonsense"),
        ({"backbone": {"model_type": "llama", "vocab_size": 7}}, "backbone has vocab_size 7; the store's"),
        (
            {"backbone": {"model_type": "gpt2", "n_positions": 8}},
            "backbone has n_positions 8; sequence_length is 16",
        ),
        (
            {"backbone": {"model_type": "llama", "max_position_embeddings": 8}},
            "backbone has max_position_embeddings 8; sequence_length is 16",
        ),
        (
            {"backbone": {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 3}},
            "refuses the backbone",
        ),
        ({"backbone": {"model_type": "vit"}}, "'vit', which is no causal language model"),
        ({"backbone": {"model_type": "gpt2", "resid_pdrop": 0.1}}, "resid_pdrop 0.1: a resumed run"),
        ({"optimizer": "magic"}, "magic"),
    ],
)
def test_impossible_settings_are_refused(home, change, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        pretrain_soe.run(Pretrain(name="bad", **SETTINGS | change))
    assert not (home / "runs" / "bad").exists()


def test_any_hugging_face_architecture(home, tmp_path):  # noqa: F811
    """A Llama with grouped queries and low-rank experts, from settings to a soup."""
    llama = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    store = DomainStore(home / "stores" / "toy")
    settings = Pretrain(
        name="llama", backbone=llama, expert_rank=2, **SETTINGS | {"steps": 12, "warmup_steps": 2}
    )
    run = run_plan.resolve(settings, store)
    soup, training = run.soup, run.training
    filled = {
        "vocab_size": store.vocab_size,
        "max_position_embeddings": 16,
        "eos_token_id": store.end_of_text,
    }
    assert filled.items() <= soup.backbone.items() and soup.backbone["attention_dropout"] == 0
    trainer = SoupTrainer(soup, training, centroids_KD=torch.from_numpy(store.tree.leaves_KD))
    found = []
    for batch in run_plan.make_stream(settings, store, training).in_process(0, 12):
        found.append(
            trainer.train_step(
                torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
                torch.from_numpy(batch.mixture_B),
                torch.from_numpy(batch.domain_weights_WK),
            ).loss
        )
    assert found[-1] < found[0]


def test_how_a_run_is_carried_out_is_not_what_it_is(home):  # noqa: F811
    """After a run ran out of memory, the same name goes on with smaller passes."""
    store = DomainStore(home / "stores" / "toy")
    whole, split = (
        run_plan.resolve(Pretrain(name="x", micro_batch_size=size, **SETTINGS), store).training
        for size in (None, 1)
    )
    assert whole != split and pretrain_soe._identity(whole) == pretrain_soe._identity(split)
    assert pretrain_soe._identity(whole)["optimizer"] == "adam"
