"""What a door makes of an error: one clear line for what the user can mend, a traceback for a fault."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from flows.errors import in_one_line, user_error
from flows.prefect_flows.ray_job_client import JobError
from flows.settings import Pretrain
from storage_schema.errors import UserError
from storage_schema.manifest import StoreError, write_atomically


def fail(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize("kind", [UserError, StoreError, JobError])
def test_what_the_user_can_mend_is_one_line(kind):
    assert user_error(kind("n is 3;\n it must be 4")) == "n is 3; it must be 4"


def test_the_command_prints_it_on_stderr(capsys):
    assert in_one_line(fail(UserError("n is 3;\n it must be 4"))) == 1
    assert capsys.readouterr() == ("", "error: n is 3; it must be 4\n")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"steps": 0}, "steps: Input should be greater than or equal to 1 (got 0)"),
        ({"stepz": 1}, "stepz: Extra inputs are not permitted (got 1)"),
        (
            {"generic_share": "half"},
            "generic_share: it must be a number from 0 to 1, 'uniform' or 'triangular' (got 'half')",
        ),
        (
            {"laws": [{"law": "uniform", "share": 1, "generic_share": 2}]},
            "laws.0.generic_share: it must be a number from 0 to 1, 'uniform' or 'triangular' (got 2)",
        ),
    ],
)
def test_a_setting_out_of_bounds_is_named(setting, said):
    with pytest.raises(ValidationError) as raised:
        Pretrain(**setting)
    assert user_error(raised.value) == said


@pytest.mark.parametrize("use", [Path.read_text, lambda folder: write_atomically(folder, "")])
def test_a_folder_in_place_of_a_file_is_named(tmp_path, use):
    with pytest.raises(IsADirectoryError) as raised:
        use(tmp_path)
    said = f"{tmp_path} is a folder, where a file is needed. Give the path of a file."
    assert user_error(raised.value) == said


def test_a_full_disk_is_named():
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert "no space left on the disk of /data/x" in user_error(full)


FAULTS = [
    ZeroDivisionError(),
    ValueError("operands could not be broadcast together with shapes (3,) (4,)"),
    pa.ArrowInvalid("Column 1 named b expected length 3 but got length 4"),
    json.JSONDecodeError("Expecting value", "", 0),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid start byte"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/part-0001"),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_faults_keep_their_traceback(error):
    """Of a library's ValueError the text alone says nothing to the user, and nothing of where it came from."""
    assert user_error(error) is None
    with pytest.raises(type(error)):
        in_one_line(fail(error))


def test_errors_raised_in_the_cluster_are_found(ray_cluster):
    import ray

    @ray.remote
    def task():
        raise UserError("the passage 7 is empty")

    @ray.remote
    def fault():
        raise ValueError("operands could not be broadcast")

    with pytest.raises(UserError) as raised:
        ray.get(task.remote())
    assert user_error(raised.value) == "the passage 7 is empty"
    with pytest.raises(ValueError) as raised:
        ray.get(fault.remote())
    assert user_error(raised.value) is None
