"""Who may import whom, read from the source: the walk of the data goes one way, and each room keeps to its own work.

Imports inside functions count as those at the top do, and so do those for a type checker alone: an arrow that is taken
late is still an arrow.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOORS = {"prefect", "fastapi", "starlette", "uvicorn", "flows"}

MAY_IMPORT = {
    "storage_schema": {"storage_schema", "pyarrow", "numpy", "safetensors"},
    # It must run where only torch, transformers and safetensors are: what they bring themselves is there too.
    "soe_model": {
        "soe_model", "storage_schema", "torch", "transformers", "safetensors", "numpy", "yaml",
        "tokenizers",
    },
}  # fmt: skip
"""Packages besides Python's own; a room that is not here may import what MUST_NOT_IMPORT leaves."""
MUST_NOT_IMPORT = {"pipeline": DOORS | {"soe_model", "tests"}, "flows": {"tests"}}
EXTRAS = {
    "soe_model/optimizers/compiling.py": {"triton"},
    "soe_model/optimizers/kernels.py": {"triton"},
    "soe_model/exports/git_theta_update.py": {"git_theta", "git", "file_or_name"},
    "soe_model/methods/arrow.py": {"peft"},
    "soe_model/methods/lora_pool.py": {"peft"},
    "soe_model/methods/merging.py": {"peft"},
}
"""Files that import what an extra installs; the others import them late, or they import it late themselves."""

COPIES = {"array", "as_tensor", "asarray", "empty", "from_numpy", "nn.functional.one_hot", "ones", "ones_like", "stack",
          "tensor", "zeros"}  # fmt: skip
FOR_PEOPLE = {"argsort", "linspace", "quantile"}
"""Figures of finished numbers, which are printed."""
MACHINE = {"cuda", "distributed", "inference_mode", "manual_seed", "no_grad", "set_num_threads"}
TYPES = {"Tensor", "bool", "device", "float32", "float64", "int64", "integer", "nan", "ndarray", "nn.Module"}
ARITHMETIC_ALLOWED = COPIES | FOR_PEOPLE | MACHINE | TYPES
LEARNS = {"backward", "einsum", "matmul", "softmax"}
"""Methods of tensors, whatever the tensor is called."""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that is imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            named = node.args[0] if node.args else None
            yield node.lineno, named.value if isinstance(named, ast.Constant) else "a name made at run time"


def forbidden_arrows(path: str, source: str) -> list[str]:
    """The imports of the file at `path` (below the root, with forward slashes) that its room may not have."""
    room = path.split("/")[0]
    found = []
    for line, name in imported(ast.parse(source)):
        top = name.split(".")[0]
        if room in MAY_IMPORT:
            allowed = MAY_IMPORT[room] | EXTRAS.get(path, set()) | sys.stdlib_module_names
            wrong = top not in allowed
        else:
            wrong = top in MUST_NOT_IMPORT[room] or not top  # a relative import hides its room
        if wrong:
            found.append(f"{path}:{line} imports {name}")
    return found


def arithmetic(path: str, source: str) -> list[str]:
    """Where a file of `flows` computes.

    A rule that can be tested: a door may copy tensors, ask the machine and sum up figures for people. It may not
    multiply matrices, take gradients, or call any other function of torch and NumPy: a new one belongs into
    `pipeline` or `soe_model`, where it is tested without a stack, or by a decision into a list above.
    """
    tree = ast.parse(source)
    aliases = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in ("torch", "numpy"):
                    aliases[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else ""
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "numpy"):
            below = node.module.split(".")[1:]
            for alias in node.names:
                if not _is_allowed(".".join([*below, alias.name])):
                    found.append(f"{path}:{node.lineno} imports {node.module}.{alias.name}")
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            found.append(f"{path}:{node.lineno} multiplies matrices")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEARNS:
            found.append(f"{path}:{node.lineno} calls .{node.func.attr}")
        elif isinstance(node, ast.Attribute) and id(node) not in inner:
            name = _dotted(node)
            if name and name[0] in aliases:
                below = [*aliases[name[0]].split(".")[1:], *name[1:]]
                if not _is_allowed(".".join(below)):
                    found.append(f"{path}:{node.lineno} uses {'.'.join(name)}")
    return found


def _is_allowed(name: str) -> bool:
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in ARITHMETIC_ALLOWED)


def _dotted(node: ast.expr) -> list[str] | None:
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else None


def sources(*rooms: str) -> Iterator[tuple[str, str]]:
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")


@pytest.mark.parametrize("room", [*MAY_IMPORT, *MUST_NOT_IMPORT])
def test_a_room_imports_what_it_may(room):
    files = list(sources(room))
    assert files
    assert [arrow for path, source in files for arrow in forbidden_arrows(path, source)] == []


def test_the_doors_do_no_arithmetic():
    found = [line for path, source in sources("flows") for line in arithmetic(path, source)]
    assert found == []


def test_exceptions_are_needed():
    there = dict(sources("soe_model", "flows"))
    for path, names in EXTRAS.items():
        assert names == {name.split(".")[0] for _, name in imported(ast.parse(there[path]))} & names


def test_training_needs_neither_arrow_nor_ray():
    """What a machine with a GPU and only torch runs: what is imported as soe_model.training.trainer is."""
    there = dict(sources("soe_model", "storage_schema"))
    todo, seen, others = ["soe_model.training.trainer"], set(), set()
    while todo:
        name = todo.pop()
        path = name.replace(".", "/")
        path = f"{path}.py" if f"{path}.py" in there else f"{path}/__init__.py"
        if path in seen or path not in there:
            others |= set() if path in there else {name.split(".")[0]}
            continue
        seen.add(path)
        top = ast.Module(
            [n for n in ast.parse(there[path]).body if isinstance(n, ast.Import | ast.ImportFrom)], []
        )
        todo += [module for _, module in imported(top)]
    assert "soe_model/model/bank.py" in seen
    assert others - sys.stdlib_module_names <= {"torch", "numpy", "transformers", "safetensors"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("storage_schema/a.py", "import torch"),
        ("storage_schema/a.py", "from pipeline.mixtures.plan import MixturePlan"),
        ("storage_schema/a.py", "def f():\n    import polars"),
        ("pipeline/a.py", "from soe_model.model.bank import Bank"),
        ("pipeline/a.py", "import prefect.runtime"),
        ("pipeline/a.py", "def f():\n    from flows.settings import Pretrain"),
        ("pipeline/a.py", "from .. import flows"),
        ("flows/a.py", "from tests.toy_store import make_store"),
        ("soe_model/a.py", "import ray"),
        ("soe_model/a.py", "def f():\n    import ray.data as data"),
        ("soe_model/a.py", "from pipeline.tokenizer import load_tokenizer"),
        ("soe_model/a.py", "import importlib\nimportlib.import_module('ray')"),
        ("soe_model/a.py", "__import__(name)"),
        ("soe_model/a.py", "import triton"),
        ("soe_model/a.py", "if TYPE_CHECKING:\n    from flows.settings import Pretrain"),
    ],
)
def test_a_forbidden_arrow_is_found(path, source):
    assert len(forbidden_arrows(path, source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "loss = a @ b",
        "a @= b",
        "loss.backward()",
        "import torch\ntorch.exp(x)",
        "import torch.nn.functional as F\nF.softplus(x)",
        "import numpy as np\nnp.linalg.norm(x)",
        "def f():\n    import numpy\n    return numpy.log(x)",
        "from torch.optim import AdamW",
        "from numpy import exp",
    ],
)
def test_arithmetic_is_found(source):
    assert len(arithmetic("flows/a.py", source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flows/a.py", "import prefect, ray\nfrom soe_model.model.bank import Bank"),
        ("flows/a.py", "import torch\ntorch.cuda.is_available()\ntorch.zeros(3).mean().item() + 1"),
        ("soe_model/optimizers/kernels.py", "import triton.language as tl"),
        ("pipeline/a.py", "import ray, torch"),
        ("storage_schema/a.py", "import json\nimport pyarrow as pa"),
    ],
)
def test_what_is_allowed_is_not_found(path, source):
    assert not forbidden_arrows(path, source)
    assert not path.startswith("flows") or not arithmetic(path, source)
