"""How fast each training is: what is timed before a comparison, and how many at once."""

from __future__ import annotations

import time

import pytest

from flows.comparison import plan
from flows.comparison.plan import Pace, measure
from flows.comparison.training import stream_of
from tests.flows.comparison import toy


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


def test_every_kind_of_run_is_timed(store):
    chosen = toy.settings(store.folder.parent, methods=["branched-experts"])
    [one] = toy.all_pretrainings(chosen, store)
    pace = measure(one, str(store.folder.parent), 1, 1)
    assert pace.training > 0 and pace.window > 0


def test_the_slow_first_steps_of_a_process_are_not_its_rate(store):
    [one] = toy.all_pretrainings(toy.settings(store.folder.parent, methods=["generic"]), store)
    stream = stream_of(one.runs[0], store, 0, one.law)
    done = []

    class Warming:
        def train_step(self, *batch):
            done.append(batch)
            time.sleep(0.1 if len(done) < 4 else 0.001)

    assert plan._step_seconds(Warming(), stream, 24) < 0.05 and len(done) == plan.TIMED_STEPS[1]


def test_trainings_that_are_one_at_many_steps_may_be_two_at_few(tmp_path, store, monkeypatch):
    """A warm-up that is the preset's over a long run, and is not over a short one."""
    chosen = toy.settings(
        store.folder.parent,
        methods=["soup", "soup:w"],
        options={"soup:w": {"warmup_steps": 8}},
        tokens=None,
        hours=1.0,
    )
    there = toy.place(tmp_path, store, chosen)
    monkeypatch.setattr(
        plan, "run_tasks", lambda function, asked, **how: [Pace(training=24.0, window=1.0)] * len(asked)
    )
    monkeypatch.setattr(plan, "steps_in_hours", lambda *asked: 12)
    monkeypatch.setattr(plan, "side_by_side", lambda cores: 2)

    def todo_of(steps):
        return toy.all_pretrainings(chosen, store, steps=steps)

    assert [len(todo_of(steps)) for steps in (24, 12)] == [1, 2]
    steps, todo, seconds = plan.planned(chosen, there, todo_of, None, 24)
    assert steps == 12 and len(todo) == 2 and set(seconds.values()) == {12.0}


def test_as_many_are_timed_at_once_as_will_train(tmp_path, store, monkeypatch):
    chosen = toy.settings(store.folder.parent)
    asked_for = {}

    def run_tasks(function, asked, **how):
        asked_for.update(how)
        return [Pace(training=1.0, window=1.0)] * len(asked)

    monkeypatch.setattr(plan, "run_tasks", run_tasks)
    monkeypatch.setattr(plan, "side_by_side", lambda cores: 3)
    plan.planned(
        chosen,
        toy.place(tmp_path, store, chosen),
        lambda steps: toy.all_pretrainings(chosen, store),
        None,
        24,
    )
    assert asked_for["limit"] == 3
