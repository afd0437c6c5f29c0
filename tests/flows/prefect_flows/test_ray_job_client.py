"""Following and stopping a job, with a cluster played by the test; connecting, with real ones that refuse."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import pytest

from flows.local_stack import processes
from flows.prefect_flows import ray_job_client as ray_job
from flows.prefect_flows import ray_job_log
from flows.prefect_flows.ray_job_client import JobError


class Cluster:
    """Answers as the job client does. Its log comes in `chunks`; None among them is a broken connection."""

    def __init__(self, chunks=(), status="SUCCEEDED", code=0, nodes=()):
        self.chunks, self.final, self.code, self.nodes = chunks, status, code, nodes
        self.status = "RUNNING"
        self.connections, self.stops, self.submitted = 0, 0, []

    async def tail_job_logs(self, job_id):
        self.connections += 1
        yield ""
        for number, chunk in enumerate(self.chunks):
            if chunk is None and self.connections <= 1 + list(self.chunks[:number]).count(None):
                raise RuntimeError("WebSocket connection closed unexpectedly")
            if chunk is not None:
                yield chunk
        self.status = self.final

    def get_job_logs(self, job_id):
        return "".join(chunk for chunk in self.chunks if chunk)

    def job(self):
        return {"status": self.status, "driver_exit_code": self.code, "message": "said Ray"}

    def stop_job(self, job_id):
        self.stops += 1
        if self.stops == 2:
            self.status = "STOPPED"

    def submit_job(self, **arguments):
        self.submitted.append(arguments)

    def _do_request(self, method, path):
        if path.endswith("unknown"):
            return SimpleNamespace(status_code=404, text="")
        if path.endswith("/logs"):
            return answer({"logs": self.get_job_logs("job")})
        if path.startswith("/api/jobs/"):
            return answer(self.job())
        summary = [{"raylet": {"state": s, "resourcesTotal": r}} for s, r in self.nodes]
        return answer({"data": {"summary": summary}})


def answer(body):
    return SimpleNamespace(status_code=200, json=lambda: body, text="")


class Ailing(Cluster):
    """Its dashboard answers some requests with a gateway's error: those whose number is in `ails`."""

    def __init__(self, *arguments, ails, **rest):
        super().__init__(*arguments, **rest)
        self.ails, self.asked = ails, 0

    def _do_request(self, method, path):
        self.asked += 1
        if self.asked in self.ails:
            return SimpleNamespace(status_code=503, text="no healthy upstream")
        return super()._do_request(method, path)


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


def test_a_second_job_is_never_submitted_while_the_cluster_does_not_say(impatient):
    assert ray_job.still_running(Ailing(ails={1, 2, 3}), ["mine"]) == "mine"
    with pytest.raises(JobError, match="mine is lost, and may still be running"):
        ray_job.still_running(Ailing(ails=range(10_000)), ["mine"])


@pytest.mark.parametrize("error", [ConnectionError("cut off"), RuntimeError("status code 504")])
def test_a_job_whose_submission_lost_its_answer_is_there_all_the_same(impatient, error):
    class Deaf(Cluster):
        def submit_job(self, **arguments):
            raise error

    job = dict(module="m", config_json="{}", metadata={})
    ray_job.submit(Deaf(), job_id="taken", **job)
    with pytest.raises(JobError, match=f"did not take the job unknown: {error}"):
        ray_job.submit(Deaf(), job_id="unknown", **job)


def test_a_dashboard_that_never_answers_is_not_waited_for_without_end(monkeypatch, impatient):
    """Ray's own client sets no time-out: with a dashboard that hangs, a flow hung too."""
    monkeypatch.setattr(ray_job, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(JobError, match="no Ray cluster answers"):
            ray_job.connect()


def test_a_job_that_cannot_be_stopped_is_not_said_to_be(impatient):
    with pytest.raises(JobError, match="job was not stopped within 0 s .*503.*ray job stop job"):
        ray_job.stop(Ailing(ails=range(10_000)), "job", patience=0.1)


def test_stop_asks_until_the_job_has_ended():
    cluster = Cluster()
    assert ray_job.stop(cluster, "job") and cluster.stops == 2
    assert not ray_job.stop(cluster, "job") and not ray_job.stop(cluster, "unknown")


def test_a_job_of_an_earlier_attempt_is_found_again():
    cluster = Cluster()
    assert ray_job.still_running(cluster, ["unknown", "build-domains-x-1"]) == "build-domains-x-1"
    cluster.status = "FAILED"
    assert ray_job.still_running(cluster, ["unknown", "build-domains-x-1"]) is None


def test_the_settings_reach_the_job_through_the_shell(monkeypatch):
    monkeypatch.setenv("SOE_HOME", "/data/soe")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    cluster, config = Cluster(), json.dumps({"corpus": "/it's here; $HOME"})
    ray_job.submit(cluster, job_id="j", module="flows.jobs.x", config_json=config, metadata={"a": "b"})
    import shlex

    sent = cluster.submitted[0]
    assert shlex.split(sent["entrypoint"]) == ["python", "-m", "flows.jobs.x", "--config", config]
    assert sent["runtime_env"] == {"env_vars": {"SOE_HOME": "/data/soe", "SOE_PROGRESS": "json"}}
    assert sent["submission_id"] == "j" and sent["metadata"] == {"a": "b"}


def test_resources_of_living_nodes_are_summed():
    alive, dead = ("ALIVE", {"CPU": 4.0, "GPU": 1.0}), ("DEAD", {"CPU": 64.0, "GPU": 8.0})
    cluster = Cluster(nodes=[alive, alive, dead])
    ray_job.check_resources(cluster, cpus=8, gpus=2)
    with pytest.raises(JobError, match="3 GPUs are asked for and the Ray cluster has 2.*use_gpu=false"):
        ray_job.check_resources(cluster, gpus=3)
    with pytest.raises(JobError, match="9 CPUs are asked for and the Ray cluster has 8"):
        ray_job.check_resources(cluster, cpus=9)


def test_no_cluster_is_an_error_that_names_the_address(monkeypatch):
    address = f"http://127.0.0.1:{processes.free_port()}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(JobError, match=f"no Ray cluster answers at {address}.*soe up"):
        ray_job.connect()


def test_a_wrong_token_is_an_error_that_says_so(running):
    code = "from flows.prefect_flows import ray_job_client as r\ntry: r.connect()\nexcept r.JobError as e: print(e)"
    done = running.run(
        "python",
        "-c",
        code,
        RAY_API_SERVER_ADDRESS=running.stack().dashboard_url,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="0" * 64,
    )
    assert "refuses our token" in done.stdout and "RAY_AUTH_TOKEN_PATH" in done.stdout, done.stderr
