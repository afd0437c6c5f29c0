"""The pretraining job on a real Ray cluster: streams, workers, checkpoints, the soup it leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import asdict, fields

import numpy as np
import pytest
import ray
import torch

from flows.cli.main import main
from flows.jobs import pretrain_soe, runner
from flows.settings import Pretrain
from flows.training import resolve_run as run_plan
from flows.training.run_log import read_log
from pipeline.mixtures.ratios import write_fixed
from pipeline.tasks import available_cores
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.presets import Preset, TrainingConfig
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError
from tests.s3_server import upload
from tests.soe_model.training.test_trainer import ADAM
from tests.toy_store import make_store

SETTINGS = dict(
    store="toy", preset="tiny", steps=60, warmup_steps=60, batch_size=8, sequence_length=16, mixtures_per_step=4,
    support_size=2, num_experts=3, checkpoint_every=20, window_steps=7, epsilon=ADAM.epsilon,
)  # fmt: skip
"""Of 60 steps the first seven are read by the worker itself, the others come through Ray Data."""


@pytest.fixture(scope="module")
def home(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("home")
    make_store(folder / "stores" / "toy", [400, 0, 300, 900])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOE_HOME", str(folder))
        yield folder


def losses(home, name):
    lines = (home / "runs" / name / "log.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def one_worker(home):
    """A soup trained through Ray on one worker."""
    return pretrain_soe.run(Pretrain(name="one", **SETTINGS))


def test_ray_trains_what_the_plain_loop_trains(home, one_worker):
    settings = Pretrain(name="one", **SETTINGS)
    store = DomainStore(home / "stores" / "toy")
    run = run_plan.resolve(settings, store)
    soup, training = run.soup, run.training
    trainer = SoupTrainer(soup, training, centroids_KD=torch.from_numpy(store.tree.leaves_KD))
    expected = {}
    # Attention's key biases have no gradient but rounding, which Adam makes as large as any other: the same threads
    # as a worker has, so that sums are rounded alike.
    before = torch.get_num_threads()
    torch.set_num_threads(available_cores())
    for batch in run_plan.make_stream(settings, store, training).in_process(0, 60):
        result = trainer.train_step(
            torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        )
        expected[batch.step + 1] = result.loss
    found = losses(home, "one")
    torch.set_num_threads(before)
    assert sorted(found) == list(range(10, 61, 10))
    for step, loss in found.items():
        assert abs(loss - expected[step]) < 1e-5
    # Of the first 64 mixtures; 60 is the last step.
    plan = run_plan.make_stream(settings, store, training).plan
    probes = torch.from_numpy(plan.first_mixtures(64, stop=60)).float()
    measured = [row for row in read_log(home / "runs" / "one") if "expert_cosine" in row]
    assert [row["step"] for row in measured] == [50, 60]
    for name, value in asdict(trainer.specialisation(probes)).items():
        assert value > 0 and measured[-1][name] == pytest.approx(value, rel=1e-3), name
    opened = SoupOfExperts.open(home / "soups" / "one")
    weights = torch.tensor([[0.5, 0.0, 0.5, 0.0]])
    [instance] = trainer.bank.instances(trainer.router.module(weights).detach())
    found = unflatten(opened.instances(opened.coefficients(weights))[0], opened.layout)
    for name, tensor in unflatten(instance, trainer.backbone.layout).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    assert one_worker["tokens"] == 60 * 8 * 16 and one_worker["train_seconds"] > 0


@pytest.mark.long  # tests/soe_model/model/test_sharding.py has the same without Ray
def test_two_workers_give_the_same_losses(home, one_worker):
    pretrain_soe.run(Pretrain(name="two", num_workers=2, **SETTINGS))
    for step, loss in losses(home, "two").items():
        assert abs(loss - losses(home, "one")[step]) < 1e-4


@pytest.mark.faults
def test_a_run_killed_in_its_middle_goes_on_as_if_nothing_had_happened(home, one_worker):
    config = Pretrain(name="killed", **SETTINGS).model_dump_json(exclude_unset=True)
    run = home / "runs" / "killed"
    job = subprocess.Popen(
        [sys.executable, "-m", "flows.jobs.pretrain_soe", "--config", config],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        start_new_session=True,
    )
    snapshot = run / "checkpoint_manager_snapshot.json"
    while not (snapshot.exists() and "step-000000040" in snapshot.read_text()):
        assert job.poll() is None
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    time.sleep(2)  # Ray ends the workers of a dead driver
    assert not (home / "soups" / "killed").exists()
    with open(run / "log.jsonl", "a") as file:
        file.write('{"step": 60, "lo')  # as a kill in the middle of a line leaves it
    before = (run / "log.jsonl").read_text().splitlines()
    resumed = pretrain_soe.run(Pretrain(name="killed", **SETTINGS))
    assert (run / "log.jsonl").read_text().splitlines()[:4] == before[:4]  # to step 40: not done again
    assert losses(home, "killed") == losses(home, "one")
    assert resumed["digest"] == one_worker["digest"]


def test_a_finished_run_is_skipped(home, one_worker):
    before = (home / "runs" / "one" / "log.jsonl").read_text()
    assert pretrain_soe.run(Pretrain(name="one", **SETTINGS))["digest"] == one_worker["digest"]
    assert (home / "runs" / "one" / "log.jsonl").read_text() == before


@pytest.mark.long
def test_a_store_on_s3_gives_the_same_soup(home, one_worker, s3):
    """The job starts a Ray session of its own, whose processes have the AWS variables."""
    settings = Pretrain(name="far", **SETTINGS | {"store": upload(s3, home / "stores" / "toy")})
    command = [
        sys.executable,
        "-m",
        "flows.jobs.pretrain_soe",
        "--config",
        settings.model_dump_json(exclude_unset=True),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(home, "far") == losses(home, "one")
    assert json.loads(done.stdout.split("soe-summary ")[1])["digest"] == one_worker["digest"]


def test_the_mixtures_of_a_run_are_a_table_that_another_run_can_follow(home, one_worker, tmp_path, capsys):
    assert main(["ratios", "one", "--out", str(tmp_path / "r.csv")]) == 0
    recorded = SETTINGS | dict(
        support_size=None, meta_distribution="recorded", ratios=str(tmp_path / "r.csv")
    )
    settings = Pretrain(name="again", **recorded)
    store = DomainStore(home / "stores" / "toy")
    again = run_plan.make_stream(settings, store, run_plan.resolve(settings, store).training).plan
    stream, steps = run_plan.stream_of_run("one")
    assert steps == 60
    first, second = stream.plan.steps(0, 60), again.steps(0, 60)
    assert np.array_equal(first.domain_TB, second.domain_TB) and np.array_equal(first.row_TB, second.row_TB)
    assert main(["ratios", "one", "--steps", "5:8", "--out", str(tmp_path / "some.csv")]) == 0
    whole, some = ((tmp_path / name).read_text().splitlines() for name in ("r.csv", "some.csv"))
    assert len(whole) == 1 + 60 * 4 and len(some) == 1 + 3 * 4
    capsys.readouterr()
    assert main(["ratios", "none"]) == 1 and "there is no run 'none'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds 240 mixtures; there is no mixture 480"):
        pretrain_soe.run(Pretrain(name="longer", **recorded | {"steps": 121}))


@pytest.mark.parametrize("law", ["uniform", "dirichlet"])
def test_other_laws_of_mixtures(home, law):
    settings = Pretrain(
        name="x", **{k: v for k, v in SETTINGS.items() if k != "support_size"}, meta_distribution=law
    )
    store = DomainStore(home / "stores" / "toy")
    plan = run_plan.make_stream(settings, store, run_plan.resolve(settings, store).training).plan
    assert (plan.steps(0, 9).support_TWs == [0, 2, 3]).all()  # domain 1 is empty


@pytest.mark.parametrize("method", ["soup", "generic"])
def test_a_fixed_mixture_is_that_of_a_table(home, tmp_path, method):
    """With method=generic it is CRISP: one model for one set of texts."""
    write_fixed(np.array([0.25, 0, 0, 0.75]), tmp_path / "h.csv", run="notes")
    asked = {k: v for k, v in SETTINGS.items() if k != "support_size"}
    settings = Pretrain(
        name="x", method=method, meta_distribution="fixed", ratios=str(tmp_path / "h.csv"), **asked
    )
    store = DomainStore(home / "stores" / "toy")
    run = run_plan.resolve(settings, store)
    soup, training = run.soup, run.training
    plan = run_plan.make_stream(settings, store, training).plan
    assert plan.steps(5, 6).domain_weights(5, 4).tolist() == [[0.25, 0, 0, 0.75]] * training.mixtures_per_step
    assert (soup.num_experts == 0) == (method == "generic")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"sequence_length": 12}, "sequence_length was 16, now 12"),
        ({"batch_size": 16}, "batch_size was 8, now 16"),
        ({"by_size": True}, 'meta_distribution was .*now .*"by_size":true'),
        ({"mixtures_per_step": 2}, "mixtures_per_step was 4, now 2"),
    ],
)
def test_an_unfinished_run_is_not_resumed_on_another_plan(home, monkeypatch, change, named):
    name = "begun-" + "-".join(change)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_soe, "_fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain_soe.run(Pretrain(name=name, **SETTINGS))
    with pytest.raises(StoreError, match=f"holds another run: .*{named}.*Use another name"):
        pretrain_soe.run(Pretrain(name=name, **SETTINGS | change))


def test_a_partition_that_cannot_be_read_ends_the_job_with_its_name(home, monkeypatch, capsys):
    """It is met by a fetcher, in the middle of the run, and the job's last line says so."""
    store = make_store(home / "stores" / "cut", [400, 400])
    asked = SETTINGS | dict(store="cut", mixtures_per_step=1, support_size=1, window_steps=1)
    settings = Pretrain(name="cut", **asked)
    opened = DomainStore(store)
    plan = run_plan.make_stream(settings, opened, run_plan.resolve(settings, opened).training).plan
    other = 1 - int(plan.steps(0, 1).domain_TB[0, 0])
    os.truncate(store / "domains" / partition_path(other), 500)
    monkeypatch.setattr(
        sys, "argv", ["pretrain_soe", "--config", settings.model_dump_json(exclude_unset=True)]
    )
    with pytest.raises(SystemExit) as exit_:
        runner.main(Pretrain, pretrain_soe.run)
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert exit_.value.code == 2
    assert said.startswith(f"error: domain {other}: ") and partition_path(other) in said


def test_a_store_is_verified_where_that_is_asked_for(home):
    """Other bytes of the same length are found by their sha256 alone."""
    store = make_store(home / "stores" / "altered", [400, 0, 300, 900])
    path = store / "domains" / partition_path(2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="domain=0002/part-00000.arrow was altered"):
        pretrain_soe.run(Pretrain(name="verified", verify_store=True, **SETTINGS | {"store": "altered"}))
    assert not (home / "runs" / "verified").exists()


def test_a_name_in_use_is_refused(home, one_worker):
    with pytest.raises(StoreError, match="built with other settings: .*training was"):
        pretrain_soe.run(Pretrain(name="one", **SETTINGS | {"steps": 121}))


def test_checkpoints_of_another_store_are_refused(home, one_worker):
    """The soup is gone, its run's checkpoints are there, and the store was rebuilt with other text."""
    make_store(home / "stores" / "other", [400, 0, 300, 900], seed=1)
    (home / "soups" / "one").rename(home / "soups" / "kept")
    try:
        with pytest.raises(
            StoreError,
            match='runs/one holds another run: store was "[0-9a-f]{64}", now "[0-9a-f]{64}"\\. Use',
        ):
            pretrain_soe.run(Pretrain(name="one", **SETTINGS | {"store": "other"}))
    finally:
        (home / "soups" / "kept").rename(home / "soups" / "one")


def test_the_generic_twin_has_one_mixture_and_no_expert(home):
    settings = Pretrain(name="twin", method="generic", **SETTINGS)
    run = run_plan.resolve(settings, DomainStore(home / "stores" / "toy"))
    soup, training = run.soup, run.training
    plan = run_plan.make_stream(settings, DomainStore(home / "stores" / "toy"), training).plan
    assert soup.num_experts == 0 and training.mixtures_per_step == 1
    assert plan.meta_distribution.weights_K.tolist() == pytest.approx([24 / 98, 0, 18 / 98, 56 / 98])


def test_a_disk_that_is_too_small_is_refused_before_anything_starts(home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1_000_000))
    with pytest.raises(
        ValueError, match="the run with its 2 checkpoints.* has 0.001 GB free.*lower checkpoints_kept"
    ):
        pretrain_soe.run(Pretrain(name="bad", **SETTINGS))
    assert not (home / "runs" / "bad").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "huge"}, "no preset 'huge'; there are tiny"),
        ({"store": "nowhere"}, "no domains at"),
        ({"num_workers": 3}, "batch_size 8 is not a multiple of the 3 workers"),
        ({"support_size": 4}, "between 1 and the 3 domains"),
        (
            {"meta_distribution": "recorded", "support_size": None},
            "=recorded reads its mixtures from a table",
        ),
        ({"meta_distribution": "fixed", "support_size": None}, "=fixed reads its mixtures from a table"),
        (
            {"ratios": "x.csv"},
            "ratios is 'x.csv', of which meta_distribution=sparse has no use.*recorded or fixed",
        ),
        (
            {"concentration": 2.0},
            "concentration is 2.0, of which .*=sparse has no use.*meta_distribution dirichlet",
        ),
        (
            {"meta_distribution": "uniform"},
            "support_size is 2, of which meta_distribution=uniform has no use",
        ),
        ({"method": "generic", "ratios": "x.csv"}, "trains one model on one mixture, and ratios is 'x.csv'"),
        (
            {"meta_distribution": "recorded", "ratios": "/no/x.csv", "support_size": None},
            "/no/x.csv is no table of mixtures",
        ),
        ({"mixtures_per_step": 3}, "batch_size 8 is not a multiple of mixtures_per_step 3"),
        ({"warmup_steps": None}, "warmup_steps is 100 and the run has 60 steps.*Give warmup_steps=6"),
        ({"num_workers": 4, "use_gpu": True}, "4 workers need 4 GPUs; the Ray cluster has 0"),
    ],
)
def test_impossible_settings_are_refused_before_anything_starts(home, change, message):
    with pytest.raises(ValueError, match=message):
        pretrain_soe.run(Pretrain(name="bad", **SETTINGS | change))
    assert not (home / "runs" / "bad").exists()


def test_every_number_of_a_preset_is_a_setting(one_worker, home):
    numbers = dict(
        steps=30, batch_size=6, sequence_length=8, mixtures_per_step=3, support_size=1, learning_rate=0.1,
        expert_learning_rate=0.2, router_learning_rate=0.3, warmup_steps=5, final_learning_rate_fraction=0.4,
        gradient_clip=0.5,
    )  # fmt: skip
    at_start = dict(
        router_hidden=7, router_input_scale=0.6, router_output_scale=0.7, expert_std=0.8, num_experts=2
    )
    adam = dict(beta1=0.5, beta2=0.6, epsilon=1e-4)
    store = DomainStore(home / "stores" / "toy")
    run = run_plan.resolve(Pretrain(store="toy", **numbers, **at_start, **adam), store)
    soup, training = run.soup, run.training
    assert {name: getattr(training, name) for name in numbers} == numbers
    assert {name: getattr(soup, name) for name in at_start} == at_start
    assert asdict(training.adam) == adam
    of_preset = {field.name for field in fields(Preset)} | {field.name for field in fields(TrainingConfig)}
    carried_out = {"optimizer", "micro_batch_size", "compile_model", "deterministic", "seed"}
    others = {
        "shape",
        "training",
        "generic_learning_rate",
        "adam",
    }  # backbone, all of these, learning_rate, its three
    assert of_preset - carried_out - others == numbers.keys() | at_start.keys()
    for name, value in [("learning_rate", "Infinity"), ("beta2", 1.0), ("warmup_steps", -1), ("epsilon", 0)]:
        with pytest.raises(ValueError, match=name):
            Pretrain(**{name: value})
