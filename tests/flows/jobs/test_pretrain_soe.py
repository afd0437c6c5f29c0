"""The pretraining job on a real Ray cluster: streams, workers, checkpoints, the soup it leaves."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from flows.cli.main import main
from flows.jobs import pretrain_soe
from flows.settings import Pretrain
from flows.training import resolve_run as run_plan
from flows.training.run_log import read_log
from pipeline.cores import available_cores
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.manifest import StoreError
from tests.flows.jobs.pretraining import SETTINGS, losses
from tests.s3_server import upload
from tests.toy_store import make_store


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
    tokens, mixtures, own = (
        torch.from_numpy(a)
        for a in (batch.tokens_BL1.astype(np.int64), batch.mixture_B, batch.domain_weights_WK)
    )
    windows_K = store.windows_K(training.sequence_length)
    generic = torch.from_numpy(windows_K / windows_K.sum()).float().expand_as(own)
    for name, weights in (("own_instance_loss", own), ("generic_instance_loss", generic)):
        loss = trainer.instance_losses(tokens, mixtures, weights).mean().item()
        assert measured[-1][name] == pytest.approx(loss, rel=1e-4), name
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


def test_a_run_may_train_the_generic_instance_too(home, one_worker):
    pretrain_soe.run(Pretrain(name="generic-too", **SETTINGS | {"train_generic": True}))
    [alone, too] = (read_log(home / "runs" / name)[-1] for name in ("one", "generic-too"))
    assert too["generic_instance_loss"] < alone["generic_instance_loss"]
    assert SoupOfExperts.open(home / "soups" / "generic-too").manifest.configuration["training"][
        "train_generic"
    ]


def test_a_finished_run_is_skipped(home, one_worker):
    before = (home / "runs" / "one" / "log.jsonl").read_text()
    assert pretrain_soe.run(Pretrain(name="one", **SETTINGS))["digest"] == one_worker["digest"]
    assert (home / "runs" / "one" / "log.jsonl").read_text() == before


def test_a_finished_soup_outlives_the_folder_of_its_run(home, one_worker):
    folder = home / "runs" / "one"
    kept = folder.rename(home / "one-kept")
    again = pretrain_soe.run(Pretrain(name="one", **SETTINGS))
    kept.rename(folder)
    assert again == {"soup": one_worker["soup"], "digest": one_worker["digest"]}


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


def of_fewer_steps(configs):
    def found(*asked):
        soup, training = configs(*asked)[:2]
        return soup, replace(training, steps=7)

    return found


def test_the_mixtures_of_a_run_are_a_table_that_another_run_can_follow(
    home, one_worker, tmp_path, capsys, monkeypatch
):
    assert main(["ratios", "one", "--out", str(tmp_path / "r.csv")]) == 0
    recorded = SETTINGS | dict(
        support_size=None, meta_distribution="recorded", ratios=str(tmp_path / "r.csv")
    )
    settings = Pretrain(name="again", **recorded)
    store = DomainStore(home / "stores" / "toy")
    again = run_plan.make_stream(settings, store, run_plan.resolve(settings, store).training).plan
    stream, steps = run_plan.stream_of_run("one")
    assert steps == 60
    monkeypatch.setattr(run_plan, "_configs", of_fewer_steps(run_plan._configs))
    assert run_plan.stream_of_run("one")[1] == 60  # the run's own, whatever a preset has become since
    monkeypatch.undo()
    first, second = stream.plan.steps(0, 60), again.steps(0, 60)
    assert np.array_equal(first.domain_TB, second.domain_TB) and np.array_equal(first.row_TB, second.row_TB)
    assert main(["ratios", "one", "--steps", "5:8", "--out", str(tmp_path / "some.csv")]) == 0
    whole, some = ((tmp_path / name).read_text().splitlines() for name in ("r.csv", "some.csv"))
    assert len(whole) == 1 + 60 * 4 and len(some) == 1 + 3 * 4
    capsys.readouterr()
    assert main(["ratios", "none"]) == 1 and "there is no run 'none'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds 240 mixtures; there is no mixture 480"):
        pretrain_soe.run(Pretrain(name="longer", **recorded | {"steps": 121}))


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


def test_a_name_in_use_is_refused(home, one_worker):
    with pytest.raises(StoreError, match="built with other settings: .*training was"):
        pretrain_soe.run(Pretrain(name="one", **SETTINGS | {"steps": 121}))
    with pytest.raises(StoreError, match="holds another run: meta_distribution was"):
        pretrain_soe.run(Pretrain(name="one", **SETTINGS | {"by_size": True}))


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
