"""The benchmark of growth: its fits and its arithmetic. What it measures is measured by hand."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import psutil
import pytest

import pipeline
from tests.benchmarks.scale import disturbing, extrapolation, inputs, job, nodes, report, sizes
from tests.benchmarks.scale.fits import Point, StageModel, exponent, fit_stage
from tests.benchmarks.scale.job import CUT, DUPLICATES, EMBED, ENCODER, LEAVES, TRAIN, TREE


def point(bytes, files, seconds=None):
    """A point of the law that the tests know: 10 s per GB, 2 ms per file, 3 s always."""
    return Point(bytes=bytes, files=files, seconds=seconds or 1e-8 * bytes + 2e-3 * files + 3)


def test_an_exponent_is_the_power():
    grown = [1000, 4000, 16000]
    for power in (0, 1, 1.05, 2):
        assert exponent(grown, [7 * size**power for size in grown]) == pytest.approx(power)


def test_a_model_is_the_law_that_its_points_follow():
    points = [point(1e9, 10), point(1e8, 10), point(4e8, 40), point(1e8, 100_000)]
    model = fit_stage(points)
    assert (model.per_byte, model.per_file, model.constant) == pytest.approx((1e-8, 2e-3, 3))
    assert model.held_out_error == pytest.approx(0)
    assert model.seconds(2e9, 5) == pytest.approx(23.01)


def test_the_largest_point_is_held_out():
    """It took twice as long as the law says, which the error is told by; the model is of all."""
    slow = point(1.6e9, 160, 2 * point(1.6e9, 160).seconds)
    model = fit_stage([slow, point(1e8, 10), point(4e8, 40), point(1e8, 100_000)])
    assert model.held_out_error == pytest.approx(-0.5) and model.per_byte > 1e-8


def test_bytes_that_files_follow_are_told_apart_by_no_model():
    model = fit_stage([Point(bytes=size, files=size / 1e6, seconds=size / 1e8) for size in (1e8, 4e8, 16e8)])
    assert (model.per_byte, model.per_file, model.constant) == pytest.approx((1e-8, 0, 0))


def test_no_coefficient_is_negative():
    """What grows faster than its bytes would begin below zero."""
    model = fit_stage([Point(bytes=size, files=1, seconds=size**2 / 1e16) for size in (1e8, 2e8, 4e8)])
    assert min(model.per_byte, model.per_file, model.constant) >= 0


def test_a_stage_is_divided_by_the_cores_that_it_can_use():
    hour = StageModel(per_byte=3600 / (extrapolation.PASSAGES * sizes.CHARACTERS), per_file=0, constant=0)
    models = dict.fromkeys((CUT, TRAIN, EMBED, TREE, LEAVES), hour)
    hours = extrapolation.plan(models, 8, cores=100).hours
    text = extrapolation.PASSAGES * sizes.CHARACTERS
    sample, tree = (
        200_000_000 / text,
        64 * 128_000 * sizes.CHARACTERS / text,
    )  # of which their work is bounded
    assert hours == pytest.approx({CUT: 1 / 800, TRAIN: sample, TREE: tree / 64, LEAVES: 1 / 64})
    few = extrapolation.plan(models, 1, cores=4, driver_seconds=7200)
    assert few.hours[LEAVES] == pytest.approx(1 / 4) and few.hours[extrapolation.SUBMITTING] == 2
    assert extrapolation.what_limits(few) == "submitting tasks (one process)"
    assert extrapolation.what_limits(extrapolation.Plan(nodes=8, hours=hours)) == f"{LEAVES} (64 tasks)"


def test_every_size_has_three_stores_and_names_that_differ():
    for size in sizes.STORES:
        cells = sizes.cells(size)
        assert len({cell.name for cell in cells}) == len(cells)
        first, second, third = (cell.passages for cell in cells if cell.kind == "store")
        assert third == 4 * second == 16 * first
    cells = sizes.cells("small", large_bytes=5000, additions=9)
    assert [cell.passages for cell in cells if cell.name == "large-5000"] == [5]
    assert [cell.additions for cell in cells if cell.kind == "additions"] == [9]


def test_the_tables_of_cells_that_follow_a_law(tmp_path):
    for cell in sizes.cells("small"):
        size = 1000 * cell.passages
        figures = {"driver_bytes": 10**8, "worker_bytes": 10**8, "tasks": 1, "argument_bytes": 9}
        stages = {
            CUT: figures | {"seconds": 2.0, "cpu_seconds": 1e-8 * size + 2e-3 * cell.files + 3},
            DUPLICATES: figures | {"seconds": 2.0, "cpu_seconds": (size / 1e6) ** 1.5, "driver_bytes": size},
        }
        if cell.kind == "encoder":
            stages[ENCODER] = figures | {"seconds": 9.0, "cpu_seconds": 0.036 * cell.passages}
        body = {"cell": cell.record(), "bytes": size, "stages": stages, "stored": {}, "additions": []}
        (tmp_path / f"{cell.name}.json").write_text(json.dumps(body))
    cells = report.read_cells(tmp_path)
    found = report.summary(cells)
    assert found["exponents"][DUPLICATES]["cpu_seconds"] == pytest.approx(1.5)
    assert found["driver_growth"] == pytest.approx({CUT: 1, DUPLICATES: 16})
    assert found["models"][CUT]["held_out_error"] == pytest.approx(0)
    assert found["arithmetic"]["hours"][8][ENCODER] == pytest.approx(1e4 / 512)
    [row] = [
        line
        for line in report.tables(cells, found).splitlines()
        if line.startswith(f"| {DUPLICATES} | 2.00 (8")
    ]
    assert row.endswith("| 1.50 ! | x 16.00 ! |")


def test_a_corpus_is_the_same_for_the_same_numbers(tmp_path):
    """Its files' times too: a store's passages are of files that are known by them."""
    known = []
    for name in "first", "second":
        inputs.write_corpus(tmp_path / name, 30, 2)
        files = sorted((tmp_path / name).rglob("*.jsonl"))
        known.append([(path.name, path.stat().st_mtime_ns, path.read_text()) for path in files])
    assert known[0] == known[1] and len(known[0]) == 2


def test_stages_on_more_nodes_stand_beside_those_on_one():
    runs = [
        {"nodes": nodes, "stages": {CUT: {"seconds": seconds}, TREE: {"seconds": 0.2}}}
        for nodes, seconds in ((1, 9.0), (2, 6.0))
    ]
    assert nodes.table(runs).splitlines()[2:] == ["| cut | 9.0 (1.00) | 6.0 (1.50) |", "| tree | 0.2 | 0.2 |"]


@contextmanager
def processes_named(*names):
    """Processes that show these commands, as Ray's workers do."""
    started = [subprocess.Popen(["bash", "-c", f"exec -a {name} sleep 60"]) for name in names]
    try:
        until = time.time() + 30
        while not all("".join(psutil.Process(one.pid).cmdline()).startswith("ray::") for one in started):
            assert time.time() < until
        yield started
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_only_workers_in_a_task_are_killed():
    """Ray's own processes have names of the same kind: without its agent, a node ends."""
    with processes_named(
        "ray::extract_group", "ray::fit_root", "ray::DashboardAgent", "ray::IDLE"
    ) as started:
        cutting, fitting, *_ = (one.pid for one in started)
        of_these = {one.pid for one in started}
        assert {one.pid for one in disturbing.working()} & of_these == {cutting, fitting}
        assert {one.pid for one in disturbing.working([TREE])} & of_these == {fitting}


def test_kills_fall_in_the_stages_that_are_named_and_each_third_is_a_node_s(tmp_path, monkeypatch):
    kept, build, replaced = tmp_path / "kills.txt", Future(), []
    with processes_named("ray::fit_root", "ray::extract_group") as (fitting, cutting):

        def replace_node():
            replaced.append(True)
            fitting.kill()
            fitting.wait()
            Thread(target=lambda: (time.sleep(0.5), build.set_result(None)), daemon=True).start()

        # What is killed lives on, to be killed again.
        monkeypatch.setattr(psutil.Process, "kill", lambda worker: None)
        disturbing.disturb_until_over(build, replace_node, 0, kept, [TREE])
        assert cutting.poll() is None
    # In the half second after the node there was a task of another stage alone.
    assert disturbing.kills_of(kept) == {"worker, in tree": 2, "node, in tree": 1} and len(replaced) == 1


def test_a_driver_is_killed_once_in_each_stage_that_is_seen(tmp_path, monkeypatch):
    """Two drivers show a task each and would go on for long, the next one is over at once."""
    shown, begun = ["ray::fit_root", "ray::extract_group"], []
    real = subprocess.Popen

    def driver(command, **more):
        task = shown.pop(0) if shown else None
        begun.append(task)
        return real(["bash", "-c", f"bash -c 'exec -a {task} sleep 60'; true" if task else "true"], **more)

    monkeypatch.setattr(subprocess, "Popen", driver)
    nodes.in_own_process([], tmp_path, 1, 0, [CUT, DUPLICATES, TREE])
    assert disturbing.kills_of(tmp_path / nodes.KILLS) == {"driver, in tree": 1, "driver, in cut": 1}
    assert begun == ["ray::fit_root", "ray::extract_group", None]


def test_the_tasks_of_every_module_of_the_pipeline_are_watched():
    """Once those of the tree were not, after they had moved to a module of their own."""
    root = Path(pipeline.__file__).parents[1]
    run_tasks = re.compile(r"^from pipeline\.tasks import .*\brun_tasks\b", re.M)
    found = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in Path(pipeline.__file__).parent.rglob("*.py")
        if run_tasks.search(path.read_text("utf-8"))
    }
    # Synthetic vectors take the embedder's place; the passages' builder gives the selection its own.
    elsewhere = {"pipeline.embeddings.build", "pipeline.passages.selection"}
    assert elsewhere <= found
    assert {module.__name__ for module in job.BUILDERS} == found - elsewhere


def test_kills_are_kept_by_stage(tmp_path):
    kept = tmp_path / "kills.tsv"
    assert disturbing.kills_of(kept) == {}
    for what, task in (("worker", "extract_group"), ("node", None), ("worker", "extract_group")):
        disturbing.note(kept, what, task)
    assert disturbing.kills_of(kept) == {"worker, in cut": 2, "node, between tasks": 1}
