"""Which runtime computes the embedder's forward pass, in which precision: named, chosen by hardware, or measured.

bfloat16 is three times as fast as float32 on some CPUs with instructions for it, slower on others, and many times
slower on those without. OpenVINO is 1.0 to 1.7 times as fast as torch on two idle cores, and twice as fast on busy
ones. ``auto`` chooses by the hardware alone, so the choice is the same however busy the machine is; ``measured`` times
all runtimes on this machine. The last bits of the vectors depend on the precision, so the manifest records the choice.
An interrupted stage continues with it, and so do documents added to a store.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pipeline.embeddings.word_pieces import WordPieces, embed_word_pieces, tokenizer_of
from storage_schema.errors import UserError
from storage_schema.manifest import write_atomically

Runtime = Literal["torch-float32", "torch-bfloat16", "torch-float16", "openvino"]
AUTO, MEASURED = "auto", "measured"
RUNTIME_RECORD = "runtime.txt"
"""The file in an unfinished stage's scratch that keeps the choice."""
WORTHWHILE = 2000
"""With fewer passages, compiling or measuring takes more time than the fastest runtime can save."""
FAST_IN_BFLOAT16 = ({"amx_bf16"}, {"AuthenticAMD", "avx512_bf16"})
"""CPUs, by Linux's names, on which bfloat16 is the fastest. With AVX-512's instructions for it and no AMX it was 3.0
times as fast as float32 on an AMD EPYC, and 0.73 times on an Intel Xeon, where OpenVINO was 1.15 times as fast."""
CLEARLY = 1.3
"""A runtime is chosen only if it is this many times as fast as torch's float32; a smaller gain may be noise."""
TRIALS = ((2, 16), (32, 64))
"""Batches that are timed: passages, and word pieces per passage. The second is a usual batch; it is skipped for a
runtime that is hopeless on the first."""
HOPELESS = 0.25
"""A runtime below this ratio is not tried further: without hardware for it, bfloat16 is a hundred times slower, and a
usual batch takes minutes."""


def runtime_of_stage(scratch: Path, asked: str, model: Any, *, passages: int, use_gpu: bool) -> Runtime:
    """The runtime of the stage with this scratch folder: the one it was begun with, else the one that `asked` leads to.

    Raises:
        ValueError: OpenVINO is asked for but is not installed, cannot run this model, or is to run on a GPU; or the
            stage was begun with it, and it is not installed now.
    """
    record = scratch / RUNTIME_RECORD
    if not record.exists():
        if asked == "openvino" and (use_gpu or not _has_openvino(model)):
            raise UserError(
                "embedder_runtime is openvino, which needs the `openvino` extra, a CPU (use_gpu=false), and a model "
                "whose text goes through one fast tokenizer. Mend that, or set embedder_runtime=auto."
            )
        write_atomically(record, choose_runtime(asked, model, passages=passages, use_gpu=use_gpu))
    begun = as_runtime(record.read_text())
    if begun == "openvino" and not _has_openvino(model):
        raise UserError(
            "these embeddings were begun with OpenVINO, which is not installed here: install the `openvino` extra, or "
            f"remove {scratch.parent} to begin them again."
        )
    return begun


def choose_runtime(asked: str, model: Any, *, passages: int, use_gpu: bool) -> str:
    """The runtime that `asked` names, or that ``auto`` or ``measured`` chooses for this many passages."""
    if asked not in (AUTO, MEASURED):
        return asked
    if use_gpu:
        return "torch-float16"
    if passages < WORTHWHILE:
        return "torch-float32"
    return _fastest(model) if asked == MEASURED else _usual(model)


def as_runtime(name: str) -> Runtime:
    """Check a runtime's name. Raises ValueError if there is no such runtime."""
    for runtime in get_args(Runtime):
        if runtime == name:
            return runtime
    raise UserError(f"no runtime {name!r}; there are {', '.join(get_args(Runtime))}.")


def with_runtime(model: Any, runtime: Runtime) -> Any:
    """Make the model compute in `runtime`; for :func:`pipeline.embeddings.word_pieces.embed_word_pieces`."""
    if as_runtime(runtime) == "openvino":
        return OpenVinoEncoder(model)
    import torch

    return model.to(getattr(torch, runtime.removeprefix("torch-")))


class OpenVinoEncoder:
    """A sentence-transformers model, from word pieces to sentence vectors, compiled by OpenVINO for the CPU.

    It computes in float32 even if the CPU has hardware for less, so that domains do not depend on the machine.
    """

    def __init__(self, model: Any) -> None:
        import torch

        # Without this module, OpenVINO sends no telemetry.
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


def _usual(model: Any) -> Runtime:
    """The runtime that is usually fastest on this kind of CPU."""
    cpu = _cpu()
    if any(kind <= cpu for kind in FAST_IN_BFLOAT16):
        return "torch-bfloat16"
    return "openvino" if _has_openvino(model) else "torch-float32"


def _cpu() -> set[str]:
    """This CPU's maker and instruction sets as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    told = [line.partition(":")[2] for line in lines if line.startswith(("vendor_id", "flags"))]
    return {word for line in told for word in line.split()}


def _fastest(model: Any) -> Runtime:
    """The fastest runtime on this machine if it is clearly faster than torch in float32; `model` is on the CPU."""
    candidates: list[Runtime] = ["torch-bfloat16"]
    if _has_openvino(model):
        candidates.append("openvino")
    speeds = {name: _speed(model, name) for name in candidates}
    best = max(speeds, key=speeds.__getitem__)
    return best if speeds[best] > CLEARLY else "torch-float32"


def _speed(model: Any, runtime: Runtime) -> float:
    """How many times as fast as torch in float32 the runtime is."""
    other = with_runtime(copy.deepcopy(model), runtime)
    for rows, length in TRIALS:
        pieces = WordPieces(np.full(rows * length, 7, np.int32), np.full(rows, length, np.int32))
        ratio = _seconds(model, pieces) / _seconds(other, pieces)
        if ratio < HOPELESS:
            break
    return ratio


def _seconds(model: Any, pieces: WordPieces) -> float:
    """The shortest of three runs, after one to warm up."""
    taken = []
    for _ in range(4):
        begun = time.perf_counter()
        embed_word_pieces(model, pieces)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def _has_openvino(model: Any) -> bool:
    return importlib.util.find_spec("openvino") is not None and tokenizer_of(model) is not None
