"""A specialist's directory through llama.cpp's own converter, which is not to be had as a package of its own.

SOE_LLAMA_CPP names its sources, such as those inside the source distribution of llama-cpp-python (vendor/llama.cpp).
"""

import os
import subprocess
import sys

import pytest
import torch

from pipeline.tokenizer import load_tokenizer
from soe_model.files.write_soup import soup_of_trainer
from soe_model.model.backbone import gpt2_config
from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import instance_of, make_recipe
from soe_model.specialists.specialist_files import write_specialist
from storage_schema.tree import Tree
from tests.soe_model.training.test_trainer import K, make_trainer
from tests.toy_store import write_texts

CONVERT = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
convert_hf_to_gguf.main()
"""
"""The converter knows a tokenizer by a hash over its whole vocabulary; ours cuts text as GPT-2's does."""
NAMES = {
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
}  # fmt: skip


def specialist(root):
    """The soup, the recipe, and the directory of a specialist with a byte-level tokenizer."""
    store = write_texts(root / "store", [["The mate salts the soup."] * 4] * K)
    vocab_size = load_tokenizer(store / "tokenizer").vocab_size
    backbone = gpt2_config(
        vocab_size=vocab_size, sequence_length=32, embedding_size=16, num_layers=2, num_heads=2
    )
    tree, tokenizer = Tree.read(store / "domains/tree.arrow"), store / "tokenizer/tokenizer.json"
    trainer = make_trainer(backbone=backbone, sequence_length=32)
    soup = soup_of_trainer(root / "soup", trainer, tree=tree, tokenizer=tokenizer)
    recipe = make_recipe(soup, coefficients_N=torch.tensor([0.7, -0.3, 0.0, 1.9]), how={})
    write_specialist(soup, root / "specialist", recipe, instance_of(recipe, soup))
    return soup, recipe, root / "specialist"


def name_in_gguf(name):
    module, _, side = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{side}"
    _, _, layer, module = module.split(".", 3)
    return f"blk.{layer}.{NAMES[module]}.{side}"


@pytest.mark.long
def test_llama_cpp_converts_every_bit(tmp_path, monkeypatch):
    llama_cpp = os.environ.get("SOE_LLAMA_CPP")
    if not llama_cpp:
        pytest.skip("SOE_LLAMA_CPP does not say where llama.cpp's sources lie: no GGUF was written")
    soup, recipe, folder = specialist(tmp_path)
    command = [sys.executable, "-c", CONVERT, llama_cpp, str(folder), "--outtype", "f32", "--outfile"]
    done = subprocess.run(
        [*command, str(tmp_path / "a.gguf")],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.syspath_prepend(f"{llama_cpp}/gguf-py")
    from gguf import GGUFReader  # deptry: ignore[DEP001] llama.cpp brings it

    found = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    for name, tensor in unflatten(instance_of(recipe, soup), soup.layout).items():
        # A Conv1D's matrix is [in, out], all of llama.cpp's are [out, in].
        conv1d = ".c_" in name and tensor.dim() == 2
        assert torch.equal(found.pop(name_in_gguf(name)), tensor.T if conv1d else tensor), name
    assert not found
