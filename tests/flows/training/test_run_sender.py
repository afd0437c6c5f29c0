"""What a run on S3 sends and fetches: only what is whole, whatever dies, alters, answers or comes meanwhile."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from flows.training.ray_internals.registered import SNAPSHOT, registered
from flows.training.run_sender import RunSender
from pipeline.places.buckets import Bucket
from pipeline.remote.claim import Claim, ClaimedError
from pipeline.remote.mirror import CLAIM
from pipeline.tasks import ignore_progress
from soe_model.training.checkpoint_files import STATE, is_whole, rank_file
from storage_schema.manifest import StoreError, UnavailableError, content_digest
from storage_schema.versions import written_with
from tests.s3_server import BUCKET


class Lost(Exception):
    """The machine is gone."""


@pytest.fixture
def uri(s3, tmp_path):
    """A name that no other test has on the server."""
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def sender(uri, tmp_path):
    """Makes the sender of a machine of that name, whose folder of the run is there."""

    def sender(machine="first"):
        (tmp_path / machine / "run").mkdir(parents=True, exist_ok=True)
        bucket = Bucket(uri)
        return RunSender(tmp_path / machine / "run", bucket, Claim(bucket, tmp_path / machine))

    return sender


def write_checkpoint(run, step):
    """A folder that counts as a whole checkpoint. Returns its name."""
    folder = run / f"step-{step:09d}"
    folder.mkdir()
    data = bytes(1000) + str(step).encode()
    tensors = folder / rank_file(0, 1)
    tensors.write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    tensors.with_suffix(".json").write_text(json.dumps(entry))
    state = dict(step=step, world_size=1, plan_digest="x", notes={}, soup={}, training={}) | written_with()
    (folder / STATE).write_text(json.dumps(state | {"digest": content_digest(state)}))
    return folder.name


def register(run, *names):
    """Write Ray's list, and the run's records."""
    (run / SNAPSHOT).write_text(
        json.dumps({"checkpoint_results": [{"checkpoint_dir_name": n} for n in names]})
    )
    (run / "run.json").write_text(json.dumps(written_with() | {"seed": 0}))
    (run / "log.jsonl").write_text(f'{{"step": {len(names)}}}\n')


def sent_list(sender):
    return registered(sender.bucket.read(f"run/{SNAPSHOT}") or b"")


def down(*_, **__):
    raise UnavailableError("the server does not answer")


def test_a_checkpoint_that_is_half_sent_is_not_in_the_list_there(sender, monkeypatch):
    one = sender()
    first = write_checkpoint(one.folder, 20)
    register(one.folder, first)
    one.send()
    second = write_checkpoint(one.folder, 40)
    register(one.folder, second)
    upload = Bucket.upload

    def dies(bucket, path, name, **kwargs):
        if path.suffix == ".safetensors":
            raise Lost
        upload(bucket, path, name, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Lost):
        patch.setattr(Bucket, "upload", dies)
        one.send()
    other = sender("second")
    other.fetch(ignore_progress)
    assert [path.name for path in other.folder.glob("step-*")] == [first] and is_whole(other.folder / first)
    sender().send()  # the machine is back
    assert sent_list(one) == [second]
    names = {name.split("/")[1] for name in one.bucket.sizes("run")}
    assert names == {second, SNAPSHOT, "run.json", "log.jsonl"}


def test_a_checkpoint_that_ray_deletes_while_it_is_sent_is_not_taken_for_whole(sender, monkeypatch):
    one = sender()
    name = write_checkpoint(one.folder, 20)
    register(one.folder, name)
    upload = Bucket.upload

    def deletes(bucket, path, *args, **kwargs):
        shutil.rmtree(one.folder / name, ignore_errors=True)
        upload(bucket, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "upload", deletes)
        assert one.tried()
    assert sent_list(one) == []
    (one.folder / name).mkdir()  # half deleted
    (one.folder / name / STATE).write_text("{}")
    assert one.tried() and sent_list(one) == []


def test_only_whole_checkpoints_of_the_list_are_fetched(sender, s3, tmp_path, capsys):
    one = sender()
    names = [write_checkpoint(one.folder, step) for step in (20, 40)]
    register(one.folder, *names)
    one.send()
    one.bucket.remove(f"run/{names[1]}/{rank_file(0, 1)}")
    for other in ("step-000000060/a.json", "outside", f"{names[0]}/deeper/outside"):
        s3.put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/run/{other}", Body=b"{}")
    two = sender("second")
    two.fetch(ignore_progress)
    assert [path.name for path in two.folder.glob("step-*")] == names[:1]
    assert f"{names[1]} is not whole" in capsys.readouterr().out
    assert not list(tmp_path.rglob("outside"))


def test_a_checkpoint_altered_there_is_refused(sender, s3, tmp_path):
    one = sender()
    name = write_checkpoint(one.folder, 20)
    register(one.folder, name)
    one.send()
    s3.put_object(
        Bucket=BUCKET,
        Key=f"{tmp_path.name}/run/{name}/{rank_file(0, 1)}",
        Body=bytes(1002),
        Metadata={"sha256": hashlib.sha256((one.folder / name / rank_file(0, 1)).read_bytes()).hexdigest()},
    )
    with pytest.raises(StoreError, match="is not what was sent there"):
        sender("second").fetch(ignore_progress)


def test_a_run_that_differs_from_the_folders_is_refused(sender):
    one, two = sender(), sender("second")
    register(one.folder, write_checkpoint(one.folder, 20))
    one.send()
    register(two.folder, write_checkpoint(two.folder, 40))
    (two.folder / "run.json").write_text(json.dumps(written_with() | {"seed": 1}))
    with pytest.raises(StoreError, match="holds another run than"):
        two.fetch(ignore_progress)


def test_no_room_for_the_run_is_said_before_it_is_fetched(sender, monkeypatch):
    one, two = sender(), sender("second")
    register(one.folder, write_checkpoint(one.folder, 20))
    one.send()
    usage = shutil.disk_usage(one.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(ValueError, match="a copy of s3://"):
        two.fetch(ignore_progress)


def test_a_server_that_is_down_is_said_once_and_sent_to_later(sender, monkeypatch, capsys):
    one = sender()
    name = write_checkpoint(one.folder, 20)
    register(one.folder, name)
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "upload", down)
        assert all([one.tried() for _ in range(3)])
    assert capsys.readouterr().out.count("does not answer") == 1
    assert one.tried() and sent_list(one) == [name]
    assert "is sent to" in capsys.readouterr().out


def test_a_server_that_is_down_at_the_end_is_an_error(sender, monkeypatch):
    one = sender()
    name = write_checkpoint(one.folder, 20)
    with monkeypatch.context() as patch, pytest.raises(UnavailableError, match="does not answer"):
        patch.setattr(Bucket, "upload", down)
        with one.at_work():
            register(one.folder, name)
    with sender().at_work():  # the same command
        pass
    assert sent_list(one) == [name]


def test_who_lost_the_claim_sends_nothing_more(sender, capsys):
    one, two = sender(), sender("second")
    first = write_checkpoint(one.folder, 20)
    register(one.folder, first)
    one.send()
    one.bucket.remove(CLAIM)  # by hand: that machine is believed dead
    two.claim.take()
    register(one.folder, first, write_checkpoint(one.folder, 40))
    assert not one.tried() and "NOT sent any more" in capsys.readouterr().out
    two.claim.drop()  # it has ended, and may be further
    with pytest.raises(ClaimedError):
        one.send()
    assert sent_list(one) == [first]
