"""A soup on disk of any width and number of experts, random and untrained, a tensor at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from soe_model.files.bank_files import SHARED, expert_file
from soe_model.model.backbone import build_backbone, gpt2_config
from soe_model.model.flat_module import unflatten
from soe_model.model.router import Router
from storage_schema.stage import open_stage
from storage_schema.tree import Tree

DOMAINS, VOCABULARY = 4, 512


def write_wide_soup(
    folder: Path, *, num_experts: int, width: int, rank: int | None = None, layers: int = 2
) -> Path:
    """Its parameters are about 12 width² a layer; with a rank, experts are factors of the layers' matrices."""
    backbone = gpt2_config(
        vocab_size=VOCABULARY, sequence_length=16, embedding_size=width, num_layers=layers, num_heads=4
    )
    soup = {"backbone": backbone, "num_experts": num_experts, "num_domains": DOMAINS, "router_hidden": 4}
    if rank is not None:
        soup["expert_rank"] = rank
    stage = open_stage(folder, kind="soup", configuration={"soup": soup}, inputs={})
    flat = build_backbone(backbone, seed=0)
    for number in range(-1, num_experts):
        values = flat.params_P if number < 0 else torch.full_like(flat.params_P, 1e-3 * number)
        tensors = {name: tensor.clone() for name, tensor in unflatten(values, flat.layout).items()}
        if rank is not None and number >= 0:
            matrices = {name: t for name, t in tensors.items() if t.ndim == 2 and ".h." in name}
            tensors = {
                f"{name}.{side}": torch.full((size, rank), 1e-3 * number)
                for name, matrix in matrices.items()
                for side, size in zip("AB", matrix.shape, strict=True)
            }
        save_file(tensors, stage.work / (SHARED if number < 0 else expert_file(number)))
    router = Router(DOMAINS, num_experts, hidden=4, input_scale=1.0, output_scale=1.0)
    save_file(router.state_dict(), stage.work / "router.safetensors")
    Tree(
        coarse_CD=np.eye(1, 3, dtype=np.float32),
        leaves_KD=np.eye(DOMAINS, 3, dtype=np.float32),
        counts_K=np.ones(DOMAINS, np.int64),
        mean_distance_K=np.ones(DOMAINS, np.float32),
    ).write(stage.work / "tree.arrow")
    vocabulary = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    Tokenizer(WordLevel(vocabulary, unk_token="<|endoftext|>")).save(str(stage.work / "tokenizer.json"))
    stage.finish({})
    return folder
