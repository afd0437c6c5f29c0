"""What computes the embedder's forward pass, in which precision: given, or the fastest here by measurement.

bfloat16 is twice as fast as float32 on CPUs with matrix units for it (AMX), and many times slower on others;
OpenVINO is 1.2 times as fast as torch on two idle cores with AVX2, twice on busy ones. So nothing
but a measurement can tell. What was chosen stands in the manifest, and an interrupted stage goes on with it.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pipeline.word_pieces import WordPieces, embed_word_pieces, tokenizer_of
from storage_schema.errors import UserError
from storage_schema.manifest import write_atomically

Runtime = Literal["torch-float32", "torch-bfloat16", "torch-float16", "openvino"]
AUTO = "auto"
RUNTIME_RECORD = "runtime.txt"
"""Lies in an unfinished stage."""
WORTHWHILE = 2000
"""Passages below which the seconds of measuring are more than the fastest runtime can save."""
CLEARLY = 1.3
"""A runtime must be so much faster than torch's float32 to be chosen; near that, the choice would be the noise's."""
TRIALS = ((2, 16), (32, 64))
"""Passages and word pieces of each; the second, a usual batch, is not tried of what is hopeless in the first."""
HOPELESS = 0.25
"""bfloat16 without units for it is a hundred times slower, and a usual batch of it takes minutes."""


def runtime_of_stage(work: Path, asked: str, model: Any, *, passages: int, use_gpu: bool) -> Runtime:
    """The runtime of a stage in `work`: the one it was begun with, else what is `asked`, which may be auto.

    Raises:
        ValueError: OpenVINO is asked for and is not installed, or cannot run this model or on a GPU.
    """
    record = work / RUNTIME_RECORD
    if not record.exists():
        if asked == "openvino" and (use_gpu or not _has_openvino(model)):
            raise UserError(
                "embedder_runtime is openvino, which needs the `openvino` extra, a CPU (use_gpu=false), and a model "
                "whose text goes through one fast tokenizer. Mend that, or set embedder_runtime=auto."
            )
        if asked == AUTO:
            asked = (
                "torch-float16" if use_gpu else _fastest(model) if passages >= WORTHWHILE else "torch-float32"
            )
        write_atomically(record, asked)
    return as_runtime(record.read_text())


def as_runtime(name: str) -> Runtime:
    """The runtime of that name. Raises ValueError for one that is none."""
    for runtime in get_args(Runtime):
        if runtime == name:
            return runtime
    raise UserError(f"no runtime {name!r}; there are {', '.join(get_args(Runtime))}.")


def with_runtime(model: Any, runtime: Runtime) -> Any:
    """The model as :func:`pipeline.word_pieces.embed_word_pieces` takes it, computing in `runtime`."""
    if as_runtime(runtime) == "openvino":
        return OpenVinoEncoder(model)
    import torch

    return model.to(getattr(torch, runtime.removeprefix("torch-")))


class OpenVinoEncoder:
    """A sentence-transformers model, from word pieces to sentence vectors, compiled by OpenVINO for the CPU.

    In float32 also where the machine has units for less, so that domains do not depend on the machine.
    """

    def __init__(self, model: Any) -> None:
        import torch

        # Without it OpenVINO reports to nobody.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino  # deptry: ignore[DEP004]

        class Sentence(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
                features = {"input_ids": input_ids, "attention_mask": attention_mask}
                if token_type_ids is not None:
                    features["token_type_ids"] = token_type_ids
                return self.model(features)["sentence_embedding"]

        self.tokenizer, self.device = model.tokenizer, model.device
        names = ["input_ids", "attention_mask"]
        names += [name for name in model.tokenizer.model_input_names if name == "token_type_ids"]
        example = {name: torch.ones(2, 5, dtype=torch.long) for name in names}
        converted = openvino.convert_model(Sentence().eval(), example_input=example)
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._compiled = openvino.Core().compile_model(converted, "CPU", options)

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        import torch

        found = self._compiled({name: ids.numpy() for name, ids in features.items()})[0]
        return {"sentence_embedding": torch.from_numpy(found)}


def _fastest(model: Any) -> Runtime:
    """torch in float32, or what this machine is clearly faster with; `model` is on the CPU."""
    candidates: list[Runtime] = ["torch-bfloat16"]
    if _has_openvino(model):
        candidates.append("openvino")
    speeds = {name: _speed(model, name) for name in candidates}
    best = max(speeds, key=speeds.__getitem__)
    return best if speeds[best] > CLEARLY else "torch-float32"


def _speed(model: Any, runtime: Runtime) -> float:
    """How many times as fast as torch in float32."""
    other = with_runtime(copy.deepcopy(model), runtime)
    for rows, length in TRIALS:
        pieces = WordPieces(np.full(rows * length, 7, np.int32), np.full(rows, length, np.int32))
        ratio = _seconds(model, pieces) / _seconds(other, pieces)
        if ratio < HOPELESS:
            break
    return ratio


def _seconds(model: Any, pieces: WordPieces) -> float:
    """The best of three, after one to warm up."""
    taken = []
    for _ in range(4):
        begun = time.perf_counter()
        embed_word_pieces(model, pieces)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def _has_openvino(model: Any) -> bool:
    return importlib.util.find_spec("openvino") is not None and tokenizer_of(model) is not None
