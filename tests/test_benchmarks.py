"""Benchmarks that run anywhere, in small: they still call what is there, and what they check still holds."""

import json

import numpy as np
import pytest

from tests.benchmarks import stream_simulation


def test_the_simulation_of_the_stream_runs(tmp_path):
    """Its own check of every rank is part of it."""
    result = tmp_path / "result.json"
    arguments = ["--ranks", "4", "--sequences-per-rank", "2", "--windows", "1", "--json", str(result)]
    stream_simulation.main(arguments)
    found = json.loads(result.read_text())
    assert found["paper"]["ranks_checked"] == 4
    assert [row["name"] for row in found["simulated"]] == [s.name for s in stream_simulation.STORAGES]
    asked = round(found["paper"]["domains_in_a_window"]) / found["paper"]["window_steps"]
    for row in found["simulated"]:
        a_step = 8 + 4 * asked * row["asked_again"]
        assert row["requests_per_second"] == pytest.approx(row["steps_per_second"] * a_step)


def test_the_ranks_of_the_simulation_tile_the_global_batch():
    plan = stream_simulation.big_plan(24)
    stream = stream_simulation.MixtureStream(store_folder="", sequence_length=stream_simulation.L, plan=plan)
    slots = [np.arange(24)[stream.for_rank(rank, 6).slots] for rank in range(6)]
    assert np.concatenate(slots).tolist() == list(range(24))
    assert stream_simulation.check_ranks(plan, 6, 3)["ranks_checked"] == 6


def test_the_simulation_refuses_ranks_that_leave_slots_out(monkeypatch):
    """As it would be if a rank read its neighbour's slots."""
    neighbour = property(
        lambda stream: slice(stream.rank // 2 * stream.share, (stream.rank // 2 + 1) * stream.share)
    )
    monkeypatch.setattr(stream_simulation.MixtureStream, "slots", neighbour)
    with pytest.raises(AssertionError, match="gaps or overlap"):
        stream_simulation.check_ranks(stream_simulation.big_plan(8), 4, 2)


def test_the_simulated_storage_is_as_fast_as_its_reads(monkeypatch):
    """Without spread: one connection reads 2 sequences of each step in turn; four share them."""
    monkeypatch.setattr(stream_simulation, "SPREAD", 0.0)
    for in_flight, steps_per_second in (1, 50), (4, 200):
        storage = stream_simulation.Storage(name="even", median_seconds=0.01, in_flight=in_flight)
        rate = stream_simulation.simulate(storage, ranks=3, share=2, block_steps=8, blocks=2)
        assert rate == pytest.approx(steps_per_second)
        # 16 reads, then 16 questions: twice the time.
        rate = stream_simulation.simulate(storage, ranks=3, share=2, block_steps=8, blocks=2, checks=16)
        assert rate == pytest.approx(steps_per_second / 2)
