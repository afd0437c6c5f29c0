"""Following a job, with a cluster played by the test."""

from __future__ import annotations

import asyncio
import signal
import time
from types import SimpleNamespace

import pytest

from flows.prefect_flows import ray_job_client as ray_job
from flows.prefect_flows import ray_job_log
from flows.prefect_flows.ray_job_client import JobError
from tests.flows.prefect_flows.played_cluster import Ailing, Cluster


@pytest.fixture()
def impatient(monkeypatch):
    monkeypatch.setattr(ray_job, "ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(ray_job, "LOST_SECONDS", 0.5)


def follow(cluster) -> tuple[dict, list[str]]:
    seen: list[str] = []
    try:
        return ray_job_log.follow(cluster, "job", seen.append), seen
    except JobError as error:
        error.seen = seen
        raise


def test_lines_cut_anywhere_come_whole_and_the_summary_is_returned():
    summary, seen = follow(Cluster(["fir", "st\nsec", "ond\n\nsoe-summary ", '{"rows": 3}\n']))
    assert seen == ["first", "second", "", 'soe-summary {"rows": 3}']
    assert summary == {"rows": 3}


def test_a_broken_connection_is_made_again_and_no_line_comes_twice():
    cluster = Cluster(["one\ntwo\n", None, "three\n", None, "four\n"])
    assert follow(cluster)[1] == ["one", "two", "three", "four"]
    assert cluster.connections == 3


def test_lines_that_the_tail_missed_come_from_the_whole_log():
    class Short(Cluster):
        def get_job_logs(self, job_id):
            return "one\nerror: too late for the tail\n"

    with pytest.raises(JobError, match="^too late for the tail$"):
        follow(Short(["one\n"], status="FAILED", code=2))


def test_colours_and_redrawn_lines_are_made_plain():
    lines = follow(Cluster(["\x1b[36m(pid=7)\x1b[0m hello\n 10%|#\r 99%|###\rdone\r\n"]))[1]
    assert lines == ["(pid=7) hello", "done"]


def test_the_error_line_is_the_message():
    with pytest.raises(JobError, match="^no space on the disk$"):
        follow(Cluster(["a\nerror: no space on the disk\nafterwards\n"], status="FAILED", code=2))


def test_without_an_error_line_the_end_of_the_log_is_the_message():
    log = "".join(f"line {i}\n" for i in range(40)) + 'soe-progress {"stage": "x"}\n'
    with pytest.raises(JobError) as caught:
        follow(Cluster([log], status="FAILED", code=-9))
    assert "exit code -9" in str(caught.value) and "line 39" in str(caught.value)
    assert "line 20" not in str(caught.value) and "soe-progress" not in str(caught.value)


def test_a_job_that_never_started_gives_rays_reason():
    with pytest.raises(JobError, match="said Ray"):
        follow(Cluster([], status="FAILED", code=None))


def test_a_cluster_that_goes_away_is_given_up(monkeypatch):
    monkeypatch.setattr(ray_job, "LOST_SECONDS", 0.5)
    cluster = Cluster()
    cluster.tail_job_logs = cluster._do_request = lambda *a: (_ for _ in ()).throw(ConnectionError("gone"))
    with pytest.raises(JobError, match="no longer answers; the job job is lost"):
        follow(cluster)


def test_a_dashboard_that_ails_does_not_end_a_running_job(monkeypatch, impatient):
    """A 503 says nothing of the job. It counted as ended, and its flow run as failed while it went on."""
    monkeypatch.setattr(ray_job, "LOST_SECONDS", 30.0)
    cluster = Ailing(['soe-summary {"rows": 3}\n'], ails={1, 3, 4})
    runs = cluster.job

    def job():  # it runs for as long as the dashboard ails
        return runs() | ({"status": "RUNNING"} if cluster.asked < 5 else {})

    cluster.job = job
    assert follow(cluster)[0] == {"rows": 3}
    assert cluster.asked >= 6


def test_a_dashboard_that_only_ails_is_given_up_and_the_job_is_said_to_be_running_perhaps(impatient):
    with pytest.raises(
        JobError, match="job is lost, and may still be running.*retry.*503 no healthy upstream"
    ):
        follow(Ailing(ails=range(10_000)))


def test_a_job_that_the_cluster_forgot_is_said_to_be_unknown(impatient):
    cluster = Cluster(["one\n"])
    cluster._do_request = lambda method, path: SimpleNamespace(status_code=404, text="")
    with pytest.raises(JobError, match="knows no job job any more"):
        follow(cluster)


def test_a_job_that_succeeded_is_no_failure_because_the_end_of_its_log_cannot_be_read(impatient):
    class Logless(Cluster):
        def get_job_logs(self, job_id):
            raise ConnectionError("the node is gone")

    assert follow(Logless(['soe-summary {"rows": 3}\n']))[0] == {"rows": 3}


class Stopped(BaseException):
    """As Prefect's TerminationSignal, raised by the handler of a signal."""


def stop(*arguments):
    raise Stopped


def test_what_the_reader_of_the_log_raises_comes_through():
    with pytest.raises(Stopped):
        ray_job_log.follow(Cluster(["one\n"]), "job", stop)


def test_a_signal_ends_the_following_of_a_silent_job():
    class Silent(Cluster):
        async def tail_job_logs(self, job_id):
            await asyncio.sleep(60)
            yield ""

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.7)
        begun = time.monotonic()
        with pytest.raises(Stopped):
            follow(Silent())
        assert time.monotonic() - begun < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
