"""A pretraining run on S3: sent as it goes, resumed on another machine, its soup read from there."""

from __future__ import annotations

import pytest

from flows.jobs import pretrain_soe
from flows.settings import Pretrain
from flows.specialists.soups import soup_to_read
from flows.training import elsewhere
from flows.training.ray_internals.registered import SNAPSHOT, registered
from pipeline.places.buckets import Bucket
from pipeline.remote.mirror import CLAIM
from soe_model.files.soup import SoupOfExperts
from storage_schema.layout import run_folder
from storage_schema.manifest import StoreError
from tests.flows.jobs.pretraining import SETTINGS
from tests.s3_server import BUCKET

URI = f"s3://{BUCKET}/run"


class Lost(Exception):
    """The machine is gone."""


@pytest.fixture
def train(home, s3, tmp_path, monkeypatch):
    """Trains the run at URI on a machine of that name, which has the toy store."""

    def train(machine, **changes):
        monkeypatch.setenv("SOE_HOME", str(tmp_path / machine))
        settings = SETTINGS | {"store": str(home / "stores" / "toy")} | changes
        return pretrain_soe.run(Pretrain(name=URI, **settings))

    return train


def test_a_run_goes_on_elsewhere_and_its_soup_is_read_from_there(one_worker, train, monkeypatch, capsys):
    def is_lost(folder, bucket, **_):
        raise Lost

    with monkeypatch.context() as patch, pytest.raises(Lost):
        patch.setattr(elsewhere, "publish_soup", is_lost)
        train("first")
    bucket = Bucket(URI)
    there = bucket.sizes("run")
    assert CLAIM not in bucket.sizes() and bucket.read("soup.json") is None
    names = registered(bucket.read(f"run/{SNAPSHOT}"))
    assert len(names) == 2 and {name.split("/")[1] for name in there if "step-" in name} == set(names)
    for name in there:  # what Ray dropped is gone, and what is there is what was written
        assert (run_folder(URI) / name.partition("/")[2]).stat().st_size == there[name]
    for name in [name for name in there if names[-1] in name]:  # the newest was cut off
        bucket.remove(name)
    bucket.remove("run/summary.json")
    done = train("second")
    said = capsys.readouterr().out
    assert "it was made anew from the whole checkpoints: step-000000040" in said
    assert done["soup"] == URI and done["digest"] == one_worker["digest"]
    assert SoupOfExperts.open(soup_to_read(URI)).digest == one_worker["digest"]
    again = train("third")
    assert "is finished; nothing to train." in capsys.readouterr().out and again["digest"] == done["digest"]
    with pytest.raises(StoreError, match="was built with other settings"):
        train("fourth", seed=1)
    assert CLAIM not in bucket.sizes()


def test_two_machines_at_once_are_refused(train, s3, tmp_path):
    s3.put_object(Bucket=BUCKET, Key=f"run/{CLAIM}", Body=b'{"writer": "x", "process": 7, "host": "there"}')
    with pytest.raises(StoreError, match=f"^{URI} is being written by process 7 on 'there'"):
        train("first")
    s3.delete_object(Bucket=BUCKET, Key=f"run/{CLAIM}")
