"""The local stack: how it is taken down, mended, and refused. How it is locked: test_locked_stack.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.local_stack import component_commands as stack_commands
from flows.local_stack import lifecycle as stack
from flows.local_stack import prefect_profile, processes, start_components
from flows.local_stack import state as stack_state
from flows.local_stack.state import Stack, StackError
from flows.prefect_client.api import ApiError, PrefectApi
from pipeline.cores import available_cores
from tests.flows.stand_ins import start


def test_training_workers_cannot_hold_every_core(running):
    nodes = running.ray("/nodes?view=summary")["data"]["summary"]
    assert nodes[0]["raylet"]["resourcesTotal"]["CPU"] == max(4, available_cores())


def test_a_container_gets_what_its_control_group_grants(monkeypatch):
    """Not what the machine has: Ray would start a worker for each of its cores, and more than the memory holds."""
    usage = SimpleNamespace(free=64 * 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr(stack_commands, "available_cores", lambda: 6)
    monkeypatch.setattr(stack_commands, "memory_limit", lambda: 10**9)
    words = stack_commands.command(Stack(prefect_port=1, dashboard_port=2, ray_port=3), "ray-head")
    assert "--num-cpus=6" in words and "--object-store-memory=300000000" in words


def test_up_again_changes_nothing(running):
    before = running.stack()
    done = running.run("soe", "up")
    assert done.returncode == 0 and "is up" in done.stdout
    assert running.stack() == before


def test_up_with_another_port_is_refused_while_it_runs(running):
    done = running.run("soe", "up", "--prefect-port", "4999")
    assert done.returncode == 1
    assert str(running.stack().prefect_port) in done.stderr and "soe down" in done.stderr


def kill_worker(known: Stack) -> None:
    worker = known.processes["prefect-worker"]
    os.kill(worker.pid, signal.SIGKILL)
    while worker.alive:
        time.sleep(0.05)


def test_what_died_is_seen_and_started_again(running):
    before = running.stack()
    kill_worker(before)
    done = running.run("soe", "status")
    assert done.returncode == 1 and "down" in done.stdout
    assert running.run("soe", "up").returncode == 0
    after = running.stack()
    assert after.processes["prefect-worker"] != before.processes["prefect-worker"]
    assert after.processes["ray-head"] == before.processes["ray-head"]
    assert running.run("soe", "status").returncode == 0


def test_mending_that_fails_leaves_the_rest_running(running, monkeypatch):
    before = running.stack()
    kill_worker(before)
    monkeypatch.setenv("SOE_HOME", running.environment["SOE_HOME"])
    monkeypatch.setattr(
        start_components, "_deploy", lambda known: (_ for _ in ()).throw(StackError("refused"))
    )
    with pytest.raises(StackError, match="refused"):
        stack.up()
    after = running.stack()
    assert after.alive("ray-head") and after.alive("prefect-server") and not after.alive("prefect-worker")
    assert after.processes["ray-head"] == before.processes["ray-head"]
    assert running.run("soe", "up").returncode == 0


def test_a_port_in_use_is_named_with_the_option(place):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        options = ("--prefect-port", "--dashboard-port", "--ray-port")
        for option in options:
            chosen = [(o, str(port if o == option else processes.free_port())) for o in options]
            done = place.run("soe", "up", *(word for pair in chosen for word in pair))
            assert done.returncode == 1
            assert f"port {port} is in use" in done.stderr and option in done.stderr, done.stderr
    assert place.stack() is None


def test_status_and_down_without_a_stack(place):
    assert place.run("soe", "status").returncode == 1
    done = place.run("soe", "down")
    assert done.returncode == 0 and "No stack" in done.stdout


def test_ports_must_differ(place, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(place.folder))
    with pytest.raises(StackError, match="differ"):
        stack.up(prefect_port=6000, ray_port=6000)


def test_a_damaged_state_file_is_an_error_that_names_it(place, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(place.folder))
    stack_state.folder().mkdir(parents=True)
    (stack_state.folder() / "state.json").write_text("{")
    with pytest.raises(StackError, match="state.json"):
        stack_state.load()


def test_rays_sockets_fit_wherever_soe_home_is(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path / ("deep" * 30)))
    socket_path = (
        f"{stack_state.ray_folder()}/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
    )
    assert len(socket_path) <= 107


@pytest.mark.parametrize("made", ["a link", "a dangling link", "a file", "a folder of theirs", "nothing"])
def test_a_temporary_folder_of_somebody_else_is_refused(monkeypatch, tmp_path, made):
    """Its name can be foretold, and a link there would have us close and clear a folder of ours."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path / ("deep" * 30)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ours, folder = tmp_path / "ours", stack_state.ray_folder().parent
    ours.mkdir(mode=0o755)
    if made == "nothing":
        stack_state.prepare_folders()
        stack_state.prepare_folders()
        assert folder.stat().st_mode & 0o777 == 0o700
        return
    if made.endswith("link"):
        folder.symlink_to(ours if made == "a link" else tmp_path / "nowhere")
    elif made == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        monkeypatch.setattr("os.getuid", lambda: folder.stat().st_uid)
        real = Path.lstat
        theirs = SimpleNamespace(st_mode=folder.stat().st_mode, st_uid=folder.stat().st_uid + 1)
        monkeypatch.setattr(Path, "lstat", lambda path: theirs if path == folder else real(path))
    with pytest.raises(StackError, match=f"{folder}.*TMPDIR"):
        stack_state.prepare_folders()
    assert ours.stat().st_mode & 0o777 == 0o755


def test_the_logs_of_the_ray_session_that_ended_are_kept(stand_ins):
    session = stack_state.ray_folder() / "session_1"
    for number in (1, 2):
        (session / "logs").mkdir(parents=True)
        (session / "logs/raylet.err").write_text(f"why it ended: {number}")
        (session / "sockets").mkdir()
        (session.parent / "session_latest").symlink_to(session)
        begun = start() if number == 1 else stand_ins.up()
        assert (stack_state.former_ray_logs() / "raylet.err").read_text() == f"why it ended: {number}"
        assert not session.exists()
        os.kill(begun.processes["ray-head"].pid, signal.SIGKILL)
        os.waitpid(begun.processes["ray-head"].pid, 0)
    stand_ins.up()  # and this session left no logs
    assert (stack_state.former_ray_logs() / "raylet.err").exists()


def test_a_state_of_the_version_before_opens(stand_ins):
    """It has neither boot nor mark nor folder of its processes."""
    known = start()
    file = stack_state.folder() / "state.json"
    body = json.loads(file.read_text())
    for process in body["processes"].values():
        del process["boot"], process["mark"], process["folder"]
    file.write_text(json.dumps(body))
    assert all(map(stack_state.load().alive, known.components))
    assert stand_ins.down() and not processes.members(known.processes.values(), known.mark())


def test_down_stops_everything_though_the_server_refuses(stand_ins, monkeypatch):
    """Runs that could not be closed are closed by the next `soe up`."""
    known = start()

    def refuses(api, method, path, *rest, **named):
        raise ApiError("answers 500", 500)

    monkeypatch.setattr(PrefectApi, "call", refuses)
    assert stand_ins.down() and not processes.members((), known.mark())


def test_profiles_that_cannot_be_read_are_named_and_the_stack_is_down_all_the_same(stand_ins):
    known = start()
    file = prefect_profile.path()
    file.write_text("[profiles")
    with pytest.raises(StackError, match=f"{file} .*TOML"):
        stand_ins.down()
    assert not processes.members((), known.mark())


def test_the_environment_leads_nowhere_else(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_other")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stack_state.prepare_folders()
    made = Stack(prefect_port=1, dashboard_port=2, ray_port=3)
    for component in stack_state.COMPONENTS:
        variables = stack_state.environment(made, component)
        assert "PREFECT_API_KEY" not in variables and "RAY_ADDRESS" not in variables
        assert variables["HF_HUB_OFFLINE"] == "1"
        assert variables["PATH"].startswith(str(Path(sys.executable).parent))
    head = stack_state.environment(made, "ray-head")
    assert "PREFECT_API_AUTH_STRING" not in head
    assert (
        head["RAY_API_SERVER_ADDRESS"] == made.dashboard_url
    )  # else Ray's workers wait for ever to ask for an actor
