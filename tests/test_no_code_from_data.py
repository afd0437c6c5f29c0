"""No product file unpickles, evaluates, or asks a library to: what is read is data."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("storage_schema", "pipeline", "soe_model", "flows")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
PYTHON = {"eval", "exec", "compile", "__import__"}
LOADERS = {"from_pretrained", "from_config", "SentenceTransformer"}
"""Of transformers and sentence-transformers: each call says itself that it runs no code that it finds."""
ALLOWED: set[tuple[str, str]] = set()
"""(file, fault), each with its reason: none so far."""


def faults(source: str) -> list[str]:
    """What a file does that it must not, with line numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            parts = {part for name in names for part in name.split(".")}
            found += [(node.lineno, f"import of {name}") for name in sorted(parts & MODULES)]
        elif isinstance(node, ast.Call):
            found += [(node.lineno, fault) for fault in _of_call(node)]
    return [f"{line}: {fault}" for line, fault in sorted(found)]


def _of_call(node: ast.Call) -> list[str]:
    called, found = ast.unparse(node.func), []
    last = called.rpartition(".")[2]
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called in PYTHON:
        found.append(f"{called}()")
    if called == "torch.load" and keywords.get("weights_only") != "True":
        found.append("torch.load without weights_only=True")
    if last in LOADERS and not _of_our_own(called) and keywords.get("trust_remote_code") != "False":
        found.append(f"{called} without trust_remote_code=False")
    elif keywords.get("trust_remote_code", "False") != "False":
        found.append("trust_remote_code")
    for name in ("allow_pickle", "shell", "allow_all_kernels"):
        if keywords.get(name, "False") != "False":
            found.append(f"{name}={keywords[name]}")
    if called.startswith("np.load") and keywords.get("allow_pickle") != "False":
        found.append("np.load without allow_pickle=False")
    if called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
        found.append(called)
    if called in ("os.system", "os.popen", "read_pickle", "runpy.run_path", "torch.hub.load"):
        found.append(called)
    return found


def _of_our_own(called: str) -> bool:
    return called.partition(".")[0] in ("self", "cls")


def test_there_are_files():
    assert len(FILES) > 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_takes_code_from_data(path):
    name = path.relative_to(ROOT).as_posix()
    assert [fault for fault in faults(path.read_text("utf-8")) if (name, fault) not in ALLOWED] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import ray.cloudpickle as c",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_config(config, trust_remote_code=trusted)",
        "f(trust_remote_code=not False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
    ],
)
def test_each_fault_is_seen(line):
    assert faults(line)


def test_what_is_safe_is_not_a_fault():
    safe = "re.compile(x); model.eval(); torch.load(p, weights_only=True); yaml.safe_load(x); json.loads(x)"
    assert faults(safe + "; np.load(p, allow_pickle=False); subprocess.run(c, shell=False)") == []
