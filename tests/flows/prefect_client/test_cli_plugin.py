"""The plug-in: which command lines it completes, and that the exact words work after ``soe up``."""

from __future__ import annotations

import re

import pytest

from flows.prefect_client.cli_plugin import complete

RUN = ["prefect", "deployment", "run"]
COMPLETED = [
    ([*RUN, "build-domains"], 3),
    ([*RUN, "build-domains", "--watch"], 3),
    ([*RUN, "build-domains", "--param", "x=a/b"], 3),
    ([*RUN, "build-domains", "--params", '{"a": 1}'], 3),
    ([*RUN, "--param", "x=y", "build-domains"], 5),
    ([*RUN, "-p", "x=y", "-jv", "a=b", "build-domains"], 7),
    ([*RUN, "--tag=a", "--watch", "build-domains"], 5),
    ([*RUN, "--start-in", "in 5 minutes", "build-domains"], 5),
    (["prefect", "--profile", "soe", "deployment", "run", "build-domains"], 5),
    (["prefect", "-p", "soe", "deployment", "run", "build-domains"], 5),
    (["prefect", "--profile=soe", "--no-prompt", "deployment", "run", "build-domains"], 5),
    (["/usr/local/bin/prefect", "deployments", "run", "build-domains"], 3),
    (["-m", "deployment", "run", "build-domains"], 3),
    (["/x/site-packages/prefect/__main__.py", "deployment", "run", "build-domains"], 3),
]
UNTOUCHED = [
    [],
    ["prefect"],
    RUN,
    [*RUN, "--help"],
    [*RUN, "build-domains/build-domains"],
    [*RUN, "other/name", "--param", "x=y"],
    [*RUN, "--id", "2f7d5a0e-0000-0000-0000-000000000000"],
    [*RUN, "--id=2f7d5a0e-0000-0000-0000-000000000000"],
    [*RUN, "name", "--id", "2f7d5a0e-0000-0000-0000-000000000000"],
    [*RUN, "--param", "x=y"],
    [*RUN, "--param"],
    [*RUN, ""],
    [*RUN, "--unknown", "build-domains"],
    ["prefect", "deployment", "inspect", "build-domains"],
    ["prefect", "deployment", "ls"],
    ["prefect", "flow-run", "cancel", "build-domains"],
    ["prefect", "--unknown", "deployment", "run", "build-domains"],
    ["prefect", "--profile", "deployment", "run", "build-domains"],
    ["pytest", "deployment", "run", "build-domains"],
    ["my-prefect", "deployment", "run", "build-domains"],
]


@pytest.mark.parametrize(("argv", "at"), COMPLETED)
def test_a_bare_name_is_completed(argv, at):
    assert complete(argv) == [*argv[:at], "build-domains/build-domains", *argv[at + 1 :]]
    assert complete(complete(argv)) == complete(argv)


@pytest.mark.parametrize("argv", UNTOUCHED)
def test_everything_else_is_left_alone(argv):
    assert complete(argv) == argv


def cancel(running, output: str) -> None:
    flow_run_id = re.search(r"UUID: (\S+)", output)[1]
    running.api.call(
        "POST", f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": "CANCELLED"}, "force": True}
    )


@pytest.mark.parametrize("name", ["build-domains", "pretrain-soe/pretrain-soe"])
def test_the_exact_words_work_in_any_folder(running, tmp_path, name):
    done = running.run("prefect", "deployment", "run", name, "--start-in", "1 hour", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    full = name if "/" in name else f"{name}/{name}"
    assert f"deployment '{full}'" in done.stdout
    cancel(running, done.stdout)


def test_an_id_passes_untouched(running, tmp_path):
    found = running.api.call("GET", "/deployments/name/specialize/specialize")["id"]
    done = running.run("prefect", "deployment", "run", "--id", found, "--start-in", "1 hour", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    cancel(running, done.stdout)


def test_without_the_plug_in_prefect_is_stock(running, tmp_path):
    command = ("prefect", "deployment", "run", "build-domains", "--start-in", "1 hour")
    done = running.run(*command, cwd=tmp_path, PREFECT_PLUGINS_ENABLED="false")
    assert done.returncode == 1
    assert "FLOW_NAME" in done.stdout + done.stderr
