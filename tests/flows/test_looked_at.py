"""A pretraining run as people watch it: series in Prometheus, both dashboards, status and log; then it is cancelled.

What comes after needs the run's place: it is cancelled at the end.
"""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from flows.local_stack import processes
from tests.extras import chromium, needs_program, screenshot
from tests.flows.conftest import eventually

DASHBOARD = Path(__file__).parents[2] / "flows/local_stack/metrics/dashboard.json"
AT_THE_END_ONLY = {"ray_data_output_rows", "ray_data_output_bytes"}
"""Ray Data's: shown while it works, and it is far ahead of so small a run."""


def ask_prometheus(running, question: str):
    password = (running.folder / "soe/stack/metrics/password").read_text()
    credentials = base64.b64encode(f"soe:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{running.stack().metrics_url}/api/v1/{question}", headers={"Authorization": f"Basic {credentials}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())["data"]


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


@pytest.mark.long
def test_every_expression_of_the_dashboard_has_an_answer(running, watched):
    needs_program("prometheus")
    asked = [
        e.replace("$run", "watched") for e in expressions() if not any(name in e for name in AT_THE_END_ONLY)
    ]
    assert len(asked) > 15

    def unanswered():
        found = {e: ask_prometheus(running, "query?" + urllib.parse.urlencode({"query": e})) for e in asked}
        return {e for e, answer in found.items() if not answer["result"]}

    eventually(lambda: not unanswered())
    eventually(lambda: AT_THE_END_ONLY <= set(ask_prometheus(running, "label/__name__/values")))
    rows = ask_prometheus(
        running, "series?" + urllib.parse.urlencode({"match[]": '{__name__=~"ray_soe_.*"}'})
    )
    assert len(rows) < 40 and all("domain" not in row and "expert" not in row for row in rows)


def test_every_metric_of_ours_is_on_the_dashboard():
    from flows.training import run_metrics

    named = {*run_metrics.GAUGES, run_metrics.SECONDS, run_metrics.TOKENS}
    assert all(any(run_metrics.PREFIX + name in e for e in expressions()) for name in named)


def test_prometheus_wants_its_password(running):
    needs_program("prometheus")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{running.stack().metrics_url}/api/v1/label/__name__/values", timeout=10)
    assert refused.value.code == 401


@pytest.mark.long
def test_status_and_log(running, watched):
    shown = running.run("soe", "status").stdout
    assert re.search(
        r"pretrain watched +[\d,]+ of 1,000,000 steps \(loss \d\.\d+, [\d,]+ tokens/s, .* left\)", shown
    )
    name = running.api.flow_run(watched)["name"]
    for what in ([], [name], [watched]):
        done = running.run("soe", "logs", "-n", "200", *what)
        assert done.returncode == 0 and f"Submitted the Ray job pretrain-soe-{watched}-1." in done.stdout, (
            done
        )
    assert len(running.run("soe", "logs", "prefect-server", "-n", "3").stdout.splitlines()) == 3
    done = running.run("soe", "logs", "nothing-such")
    assert done.returncode == 1 and "no flow run 'nothing-such'" in done.stderr


@pytest.mark.long
def test_the_run_is_seen_in_both_dashboards(running, watched):
    known = running.stack()
    card = eventually(lambda: artifact(running, watched, "soup-watched"))
    assert "training loss by step" in card["data"] and "tokens per second" in card["data"]
    [stage] = json.loads(eventually(lambda: artifact(running, watched, "pretrain-soe-stages"))["data"])
    assert stage["stage"] == "pretrain watched" and stage["state"] == "running"
    token = (running.folder / "soe/stack/ray-token").read_text()
    password = (running.folder / "soe/stack/prefect-password").read_text()
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.add_cookies(
            [{"name": "ray-authentication-token", "value": token, "url": known.dashboard_url}]
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{known.dashboard_url}/#/jobs")
        page.get_by_text(f"pretrain-soe-{watched}-1").first.wait_for()
        screenshot(page, "ray-jobs")
        page.goto(f"{known.dashboard_url}/#/actors")
        page.get_by_text("RayTrainWorker").first.wait_for()
        screenshot(page, "ray-actors")
        prefect = f"{known.prefect_url}/v2"
        page.goto(f"{prefect}/login")
        page.evaluate(
            "text => localStorage.setItem('prefect-password', text)",
            base64.b64encode(password.encode()).decode(),
        )
        name = running.api.flow_run(watched)["name"]
        for shot, address, text in (
            ("prefect-runs", "runs", name),
            ("prefect-run", f"runs/flow-run/{watched}?tab=Artifacts", "pretrain-soe-pretrain-watched"),
            ("prefect-card", f"artifacts/artifact/{card['id']}", "Soup watched, step"),
        ):
            page.goto(f"{prefect}/{address}")
            page.get_by_text(text).first.wait_for()
            screenshot(page, shot)
        curve = page.get_by_role("img", name="training loss by step")
        assert curve.evaluate("image => image.complete && image.naturalWidth > 300")


def artifact(running, run: str, key: str):
    query = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}}
    found = running.api.call("POST", "/artifacts/filter", query)
    return found[0] if found else None


@pytest.mark.long
def test_tensorboard_events_lie_in_the_runs_folder(running, watched):
    folder = running.folder / "soe/runs/watched"
    assert list((folder / "tensorboard").glob("events.out.tfevents.*")) and (folder / "log.jsonl").exists()


@pytest.mark.long
def test_cancelled_it_ends_within_ten_seconds_and_leaves_no_process(running, watched):
    """The last of these tests: it ends the run."""
    assert running.run("prefect", "flow-run", "cancel", watched).returncode == 0
    begun = time.monotonic()

    def status():
        return next(j["status"] for j in running.ray("/api/jobs/") if watched in (j["submission_id"] or ""))

    eventually(lambda: status() == "STOPPED", 30)
    assert time.monotonic() - begun < 10
    assert running.wait(watched)["state_type"] == "CANCELLED"
    mine = processes.members(running.stack().processes.values(), running.stack().mark())

    def training():
        titles = (Path(f"/proc/{pid}/cmdline") for pid in mine)
        return [
            t
            for t in titles
            if t.exists() and re.search(rb"RayTrainWorker|flows\.jobs\.pretrain", t.read_bytes())
        ]

    eventually(lambda: not training(), 30)
