"""Readers of our own formats on mutated files: what comes is an object or the error that the reader promises.

The same examples every time, a few hundred a reader, in half a minute; ``SOE_FUZZ=100`` runs a hundred times as many.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.corpus.documents import BadDocument, Document
from pipeline.embeddings.build import read_embeddings, write_embeddings
from pipeline.mixtures.ratios import read_table
from pipeline.tokenizer import load_tokenizer
from soe_model.files.bank_files import MappedTensors
from soe_model.specialists.recipe import Recipe, read_recipe, recipe_of
from soe_model.training.checkpoint import save_checkpoint
from soe_model.training.checkpoint_files import is_whole
from storage_schema.domains import DomainStore, partition_path
from storage_schema.errors import UserError
from storage_schema.json_files import parse_json
from storage_schema.manifest import Manifest, StoreError, content_digest, read_manifest
from storage_schema.tree import Tree
from tests.hostile import forged
from tests.mutations import bounded, changed_json, edited, edits, head, json_values
from tests.soe_model.training.test_trainer import make_trainer
from tests.toy_corpora import json_lines, read_all, save_dataset
from tests.toy_store import write_texts


def _write(path: Path, content: bytes | str) -> None:
    """As another file: a mapping of the last example may live."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def _stays_true(read, promised: type[Exception], path: Path) -> None:
    try:
        read()
    except promised as error:
        assert type(error) in (promised, UserError, StoreError, ValueError, pa.ArrowInvalid) or isinstance(
            error, StoreError
        )
        assert path.name in str(error) or path.parent.name in str(error)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A valid file of each kind."""
    folder = tmp_path_factory.mktemp("valid")
    store = write_texts(folder / "store", [["one two", "three"], [], ["four five six"]])
    recipe = Recipe(
        soup="s" * 64, coefficients=(0.5, -1.0), domain_weights={1: 0.25, 2: 0.75}, how={"method": "m"}
    )
    manifest = Manifest(
        kind="specialist",
        configuration=recipe.configuration(),
        inputs={"soup": recipe.soup},
        counts={},
        files=(),
    )
    (folder / "specialist.json").write_text(manifest.to_json())
    (folder / "ratios.csv").write_text("run,domain_0000,domain_0002\n0,0.5,0.5\n1,1.0,\n")
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(4)}, folder / "shared.safetensors")
    save_checkpoint(folder / "checkpoint", make_trainer(), plan_digest="p", notes={"seconds": 1.5})
    return {
        "store": store,
        "manifest.json": store / "domains/manifest.json",
        "specialist.json": folder / "specialist.json",
        "ratios.csv": folder / "ratios.csv",
        "shared.safetensors": folder / "shared.safetensors",
        "tokenizer.json": store / "tokenizer/tokenizer.json",
        "checkpoint.json": folder / "checkpoint/checkpoint.json",
    }


READ = {
    "manifest.json": (lambda path: read_manifest(path.parent, "domains"), StoreError),
    "specialist.json": (read_recipe, ValueError),
    "ratios.csv": (read_table, ValueError),
    "shared.safetensors": (lambda path: MappedTensors(path).tensors(), StoreError),
    "tokenizer.json": (load_tokenizer, StoreError),
}


@pytest.mark.parametrize("name", READ)
@bounded(250)
@given(changes=edits, in_head=head)
def test_edited_bytes(files, tmp_path, name, changes, in_head):
    read, promised = READ[name]
    path = tmp_path / name
    _write(path, edited(files[name].read_bytes(), changes, in_head))
    _stays_true(lambda: read(path), promised, path)


@bounded(400)
@given(data=st.data())
def test_other_manifests_of_a_fitting_digest(files, tmp_path, data):
    for name in ("manifest.json", "specialist.json"):
        body = data.draw(changed_json(json.loads(files[name].read_text())))
        try:
            manifest = read_manifest(
                files[name].parent, "domains" if name == "manifest.json" else "specialist", name=name
            )
            text = forged(manifest, **body)
        except (TypeError, KeyError, AttributeError, ValueError):  # no digest fits what is no manifest at all
            text = json.dumps(body)
        _write(tmp_path / name, text)
        _stays_true(lambda name=name: READ[name][0](tmp_path / name), ValueError, tmp_path / name)


@bounded(250)
@given(data=st.data())
def test_other_checkpoints_of_a_fitting_digest(files, tmp_path, data):
    state = data.draw(changed_json(json.loads(files["checkpoint.json"].read_text())))
    if isinstance(state, dict):
        state.pop("digest", None)
        state["digest"] = content_digest(state)
    _write(tmp_path / "checkpoint.json", json.dumps(state))
    try:
        assert not is_whole(tmp_path)  # its ranks' files are not here
    except StoreError as error:
        assert "has schema version" in str(error)


@pytest.mark.parametrize("name", ["tree.arrow", "index.arrow", partition_path(0)])
@bounded(250)
@given(changes=edits, in_head=head)
def test_edited_stores(files, tmp_path, name, changes, in_head):
    valid, store = files["store"] / "domains", tmp_path / "store"
    for other in ("manifest.json", "tree.arrow", "index.arrow", partition_path(0), partition_path(2)):
        (store / "domains" / other).parent.mkdir(parents=True, exist_ok=True)
        content = (valid / other).read_bytes()
        _write(store / "domains" / other, edited(content, changes, in_head) if other == name else content)

    def read():
        opened = DomainStore(store)
        opened.tree.counts_K.sum()
        for domain in range(opened.num_domains):
            opened.passages(domain).to_pylist()
            if opened.tokens_K[domain]:
                opened.volumes[0].tokens(domain).sum()

    _stays_true(read, StoreError, store / "domains" / name)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "jsonl.gz", "jsonl.zst"])
@bounded(150)
@given(changes=edits, in_head=head)
def test_edited_corpora(tmp_path, kind, changes, in_head):
    records = [{"text": f"text {number}", "source": "s"} for number in range(20)]
    path = tmp_path / f"c.{kind}"
    if kind == "arrow":
        save_dataset(tmp_path / "saved", records, shards=1)
        path = tmp_path / "saved/data-00000-of-00001.arrow"
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        with pa.output_stream(
            str(path), compression="detect" if kind == "jsonl.gz" else kind[6:].replace("zst", "zstd") or None
        ) as file:
            file.write(json_lines(records))
    _write(path, edited(path.read_bytes(), changes, in_head) or b"x")
    for one in read_all(path.parent if kind == "arrow" else path):
        assert isinstance(one, Document | BadDocument)


@bounded(300)
@given(content=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_json_is_what_python_reads_or_an_error(content):
    try:
        value = parse_json(content, "here")
    except ValueError as error:
        assert str(error).startswith("here ")
    else:
        assert value == json.loads(content)


@bounded(200)
@given(
    configuration=st.dictionaries(st.text(max_size=9), json_values, max_size=4),
    counts=st.dictionaries(st.text(max_size=9), json_values, max_size=4),
)
def test_a_manifest_comes_back(tmp_path, configuration, counts):
    written = Manifest(
        kind="passages", configuration=configuration, inputs={"a": "b"}, counts=counts, files=()
    )
    (tmp_path / "manifest.json").write_text(written.to_json(), "utf-8")
    assert read_manifest(tmp_path, "passages") == written


@bounded(200)
@given(
    coefficients=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=6),
    weights=st.none() | st.dictionaries(st.integers(0, 5000), st.floats(0, 1, width=32), max_size=6),
)
def test_a_recipe_comes_back(coefficients, weights):
    recipe = Recipe(soup="s", coefficients=tuple(coefficients), domain_weights=weights, how={"method": "m"})
    manifest = Manifest(
        kind="specialist", configuration=recipe.configuration(), inputs={"soup": "s"}, counts={}, files=()
    )
    assert recipe_of(manifest) == recipe


@bounded(100)
@given(c=st.integers(1, 3), leaves=st.integers(1, 3), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_tree_and_embeddings_come_back(tmp_path, c, leaves, size, seed):
    random = np.random.default_rng(seed)
    leaves_KD = random.normal(size=(c * leaves, size)).astype(np.float32)
    leaves_KD[0] = np.nan  # an empty leaf
    counts_K = random.integers(0, 9, c * leaves)
    tree = Tree(
        coarse_CD=leaves_KD[:c], leaves_KD=leaves_KD, counts_K=counts_K, mean_distance_K=leaves_KD[:, 0]
    )
    (tmp_path / "tree.arrow").unlink(missing_ok=True)
    tree.write(tmp_path / "tree.arrow")
    for name, value in vars(Tree.read(tmp_path / "tree.arrow")).items():
        np.testing.assert_array_equal(value, getattr(tree, name))
    write_embeddings(str(tmp_path / "e.arrow"), np.arange(len(leaves_KD)), leaves_KD)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "e.arrow")[1], leaves_KD.astype(np.float16))
