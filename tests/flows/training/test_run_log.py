"""A run's log in its folder: lines of JSON, and TensorBoard's own reader sees the same numbers."""

import json

from flows.training.run_log import RunLog, read_log


def write(folder, first, last, loss):
    log = RunLog(folder, step=first)
    for step in range(first + 10, last + 1, 10):
        log.write(step, {"loss": loss, "seconds_data": 0.25})
    log.close()


def test_a_second_attempt_replaces_what_came_after_its_step(tmp_path):
    write(tmp_path, 0, 40, 5.0)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 50, "lo')  # as a kill in the middle of a line leaves it
    assert [row["step"] for row in read_log(tmp_path)] == [10, 20, 30, 40]
    write(tmp_path, 20, 60, 4.0)
    rows = read_log(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [
        (10, 5.0), (20, 5.0), (30, 4.0), (40, 4.0), (50, 4.0), (60, 4.0)
    ]  # fmt: skip
    assert read_log(tmp_path, last=2) == rows[-2:]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0]) == rows[0]


def test_tensorboard_reads_the_same(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    write(tmp_path, 0, 40, 5.0)
    write(tmp_path, 20, 60, 4.0)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "seconds_data"}
    assert [(row.step, row.value) for row in events.Scalars("loss")] == [
        (10, 5.0), (20, 5.0), (30, 4.0), (40, 4.0), (50, 4.0), (60, 4.0)
    ]  # fmt: skip


def test_a_run_that_was_not_begun_has_no_lines(tmp_path):
    assert read_log(tmp_path / "nothing") == []
