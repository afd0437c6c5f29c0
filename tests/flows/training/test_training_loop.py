"""What ends a run for good, and what only ends a group of workers."""

import errno
import json
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray.train
from ray.exceptions import RayTaskError

from flows.training import fatal_errors as endings
from flows.training import training_loop
from storage_schema.errors import UserError
from storage_schema.manifest import StoreError, UnavailableError


def wrapped(error):
    """As Ray Data raises what its actors raised."""
    return RayTaskError("fetch", "Traceback ...", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (UserError("the batch is not a multiple"), True),
        (StoreError("domain 3: part-0 is damaged"), True),
        (wrapped(StoreError("domain 3: part-0 is damaged")), True),
        (MemoryError(), True),
        # Torch raises it where the group was taken down because another rank died.
        (ValueError("Default process group has not been initialized"), False),
        (ValueError("operands could not be broadcast together"), False),
        (pa.ArrowInvalid("Tried reading schema message, was null or length 0"), False),
        (json.JSONDecodeError("Expecting value", "", 0), False),
        (OSError(errno.EIO, "Input/output error", "/shared/part-0"), False),
        (OSError("AWS Error SLOW_DOWN during GetObject operation: 503"), False),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), False),
        (UnavailableError("cannot read s3://b/part-0 after 5 attempts"), False),
        (wrapped(UnavailableError("cannot read s3://b/part-0 after 5 attempts")), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_would_fail_again_ends_the_run(tmp_path, monkeypatch, error, ends):
    """A library's ValueError and a read that failed in passing ended the whole attempt."""

    def fails(_):
        raise error

    context = SimpleNamespace(get_world_size=lambda: 2, get_world_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(training_loop, "_train", fails)
    with pytest.raises(type(error)):
        training_loop.train_loop({"run_folder": str(tmp_path), "asked": "a tiny model"})
    assert (endings.stopped(tmp_path) is not None) == ends


@pytest.mark.parametrize(("asked", "here", "threads"), [(None, 1, 8), (None, 3, 2), (2, 1, 2), (64, 1, 8)])
def test_a_worker_has_the_cores_that_it_was_given_or_its_share(monkeypatch, asked, here, threads):
    """Two runs of a small model on two cores, each with both, took four to eight times as long a step."""
    monkeypatch.setattr(training_loop, "available_cores", lambda: 8)
    assert training_loop._threads(asked, workers_here=here) == threads


def test_only_a_missing_file_means_that_a_store_has_no_words(tmp_path, monkeypatch):
    file = tmp_path / "words.json"
    assert training_loop._domain_words(file) is None
    file.write_text('[["soup"], []]')
    assert training_loop._domain_words(file) == [["soup"], []]
    file.write_text("[[")
    with pytest.raises(UserError, match="words.json is not JSON"):
        training_loop._domain_words(file)
    monkeypatch.setattr(training_loop, "read_json", lambda path: open("/proc/self/mem", "rb").read(1))
    with pytest.raises(OSError):  # a disk that fails
        training_loop._domain_words(file)
