"""A pretraining run on S3: sent as it goes, resumed on another machine, its soup read from there."""

from __future__ import annotations

import pytest

from flows.jobs import pretrain_soe
from flows.settings import Pretrain
from flows.specialists.soups import soup_to_read
from flows.training import elsewhere
from flows.training.elsewhere import written_run
from flows.training.ray_internals.registered import SNAPSHOT, registered
from pipeline.places.buckets import Bucket
from pipeline.remote.claim import Claim, ClaimedError
from pipeline.remote.mirror import CLAIM
from soe_model.files.soup import SoupOfExperts
from storage_schema.layout import run_folder
from storage_schema.manifest import StoreError
from tests.flows.jobs.pretraining import SETTINGS
from tests.s3_server import BUCKET


class Lost(Exception):
    """The machine is gone."""


@pytest.fixture
def uri(s3, tmp_path):
    """A name that no other test has on the server."""
    return f"s3://{BUCKET}/{tmp_path.name}"


def test_two_machines_at_once_are_refused(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path / "home"))
    Claim(Bucket(uri), tmp_path).take()
    with pytest.raises(ClaimedError, match=f"^{uri} is being written by process"), written_run(uri):
        raise AssertionError
    assert CLAIM in Bucket(uri).sizes()


@pytest.mark.faults
def test_a_run_goes_on_elsewhere_and_its_soup_is_read_from_there(
    home, one_worker, uri, tmp_path, monkeypatch, capsys
):
    def train(machine, **changes):
        monkeypatch.setenv("SOE_HOME", str(tmp_path / machine))
        settings = SETTINGS | {"store": str(home / "stores" / "toy")} | changes
        return pretrain_soe.run(Pretrain(name=uri, **settings))

    def is_lost(folder, bucket, **_):
        raise Lost

    with monkeypatch.context() as patch, pytest.raises(Lost):
        patch.setattr(elsewhere, "publish_soup", is_lost)
        train("first")
    bucket = Bucket(uri)
    there = bucket.sizes("run")
    assert CLAIM not in bucket.sizes() and bucket.read("soup.json") is None
    names = registered(bucket.read(f"run/{SNAPSHOT}"))
    assert len(names) == 2 and {name.split("/")[1] for name in there if "step-" in name} == set(names)
    for name in there:  # what Ray dropped is gone, and what is there is what was written
        assert (run_folder(uri) / name.partition("/")[2]).stat().st_size == there[name]
    for name in [name for name in there if names[-1] in name]:  # the newest was cut off
        bucket.remove(name)
    bucket.remove("run/summary.json")
    done = train("second")
    said = capsys.readouterr().out
    assert "it was made anew from the whole checkpoints: step-000000040" in said
    assert done["soup"] == uri and done["digest"] == one_worker["digest"]
    assert SoupOfExperts.open(soup_to_read(uri)).digest == one_worker["digest"]
    again = train("third")
    assert "is finished; nothing to train." in capsys.readouterr().out and again["digest"] == done["digest"]
    assert not list(run_folder(uri).glob("step-*"))  # the soup is there: its checkpoints are not needed
    with pytest.raises(StoreError, match="was built with other settings"):
        train("fourth", seed=1)
    assert CLAIM not in bucket.sizes()
