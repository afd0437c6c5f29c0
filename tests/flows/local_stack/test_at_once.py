"""``soe up`` and ``soe down`` at once, and a ``soe up`` that fails: what is lost, stopped and spared."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.local_stack import prefect_profile, processes, start_components
from flows.local_stack import state as stack_state
from flows.local_stack.state import StackError
from storage_schema import layout
from tests.flows.stand_ins import start


def marked(known) -> set[int]:
    """The processes that carry the stack's mark."""
    return processes.members((), known.mark())


@pytest.mark.parametrize("first", ["down", "up"], ids=["of none", "of one"])
def test_down_waits_for_the_up_before_it(stand_ins, monkeypatch, first):
    """Whatever was there when `soe down` was typed: it stops what is there when its turn comes."""
    if first == "up":
        start()
        stand_ins.down()
    under_way, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(start_components, "_deploy", lambda known: under_way.set() or go_on.wait(20))
    said: list[tuple[str, str]] = []
    with ThreadPoolExecutor(2) as pool:
        going_up = pool.submit(start)
        assert under_way.wait(20)
        going_down = pool.submit(stand_ins.down, lambda *words: said.append(words))
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and not going_down.done():
            time.sleep(0.02)
        waited = not going_down.done()
        go_on.set()
        begun = going_up.result(30)
        assert going_down.result(30) is True
    assert waited and said[0] == ("another soe", "waiting")
    after = stack_state.load()
    assert after.id == begun.id and after.processes == {} and not marked(begun)
    assert after.profile_before is None and not prefect_profile.path().exists()


def test_up_and_down_at_once_leave_no_process_that_the_state_does_not_know(stand_ins):
    start()
    doing = [stand_ins.up, stand_ins.down, stand_ins.up, stand_ins.up, stand_ins.down, stand_ins.up]
    with ThreadPoolExecutor(len(doing)) as pool:
        for done in [pool.submit(what) for what in doing]:
            done.result(60)
    known = stack_state.load()
    here = f"SOE_HOME={layout.home()}"
    assert {process.pid for process in known.processes.values()} == processes.carrying(here)
    assert prefect_profile.is_active(known.api.url) == bool(known.processes)
    stand_ins.down()
    assert not processes.carrying(here)


def test_two_stacks_at_once_keep_each_others_profiles(stand_ins, monkeypatch, tmp_path):
    """Read, changed and written again at the same time, one would lose what the other wrote."""
    reading = prefect_profile._read

    def slowly(file):
        body = reading(file)
        time.sleep(0.1)
        return body

    monkeypatch.setattr(prefect_profile, "_read", slowly)
    barrier = threading.Barrier(2)

    def activate(url):
        barrier.wait()
        prefect_profile.activate(prefect_profile.settings(url, "soe:x"), earlier.append)

    earlier: list[dict] = []
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(activate, ["http://one/api", "http://two/api"]))
    assert sorted(before["settings"] is None for before in earlier) == [False, True]


def run_of_the_dead_worker(known) -> subprocess.Popen:
    """What plays a flow run: it outlives the worker that started it, and carries its mark."""
    run = subprocess.Popen(
        ["sleep", "60"],
        env=os.environ | {processes.MARK: known.mark("prefect-worker") + ":earlier"},
        start_new_session=True,
    )
    worker = known.processes["prefect-worker"]
    os.kill(worker.pid, 9)
    os.waitpid(worker.pid, 0)
    return run


def test_an_up_that_fails_spares_the_runs_that_were_there(stand_ins, monkeypatch):
    known = start()
    run = run_of_the_dead_worker(known)
    monkeypatch.setattr(
        start_components,
        "_deploy",
        lambda known: (_ for _ in ()).throw(StackError("the deployments were refused.")),
    )
    with pytest.raises(StackError, match="refused"):
        stand_ins.up()
    after = stack_state.load()
    assert run.poll() is None
    assert set(after.processes) == {"prefect-server", "ray-head"} and all(map(after.alive, after.processes))
    assert marked(known) == {run.pid} | {process.pid for process in after.processes.values()}
    run.kill()
    run.wait()


def test_an_up_that_fails_before_it_starts_anything_stops_nothing(stand_ins, monkeypatch):
    known = start()
    run = run_of_the_dead_worker(known)
    monkeypatch.setattr(
        start_components, "_check_ports", lambda known, name: (_ for _ in ()).throw(StackError("port taken"))
    )
    with pytest.raises(StackError, match="taken"):
        stand_ins.up()
    assert run.poll() is None and stack_state.load().alive("ray-head")
    run.kill()
    run.wait()
