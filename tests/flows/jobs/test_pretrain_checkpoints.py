"""A pretraining run whose checkpoints are damaged: the newest, Ray's list of them, or all.

What can go on must leave the soup of the undisturbed run, bit for bit.
"""

import json
import shutil
import time

import pytest

from tests.flows.jobs.pretraining import LONG, STATE, Job, losses, newest, registered


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.faults
def test_behind_a_damaged_checkpoint_the_run_goes_on_from_the_one_before(home, undisturbed):
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


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["a list cut off", "a folder gone"])
def test_a_damaged_list_of_checkpoints_is_made_anew(home, undisturbed, damage):
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
def test_with_every_checkpoint_damaged_the_run_says_which(home):
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
