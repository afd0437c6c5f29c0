"""Writing a finished soup: the files that ``soup.py`` lists, from a trainer on any number of ranks.

Legend: K domains.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from soe_model.files.bank_files import SHARED, expert_file
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.training.trainer import SoupTrainer
from storage_schema.layout import DOMAIN_WINDOWS, DOMAIN_WORDS
from storage_schema.stage import open_stage
from storage_schema.tree import Tree


def soup_of_trainer(
    folder: str | Path,
    trainer: SoupTrainer,
    *,
    tree: Tree,
    tokenizer: str | Path,
    windows_K: np.ndarray | None = None,
) -> SoupOfExperts:
    """The soup of a trainer outside a run, with its manifest, in a folder of the caller's own.

    A soup of the same settings that is there is taken, whatever its weights; one of others is replaced.
    """
    of_training = {"sequence_length": trainer.training.sequence_length}
    configuration = {"soup": asdict(trainer.soup), "training": of_training}
    stage = open_stage(folder, kind="soup", configuration=configuration, inputs={}, rebuild=True)
    if stage.finished is None:
        write_soup(stage.work, trainer, tree=tree, tokenizer=tokenizer, windows_K=windows_K)
        stage.finish({})
    return SoupOfExperts.open(stage.folder)


def write_soup(
    folder: str | Path,
    trainer: SoupTrainer,
    *,
    tree: Tree,
    tokenizer: str | Path,
    windows_K: np.ndarray | None = None,
    domain_words: list[list[str]] | None = None,
) -> None:
    """Write the trainer's bank and router into `folder` (a stage's work folder); collective over ranks.

    Args:
        windows_K: number of windows of each domain at the training's sequence length; they give the generic mixture.

    Rank 0 writes; the other ranks send it their columns, one expert at a time. The owner of the stage writes the
    manifest.
    """
    folder, sharding = Path(folder), trainer.sharding
    for number in range(-1, trainer.soup.num_experts):
        if number < 0:
            tensors = unflatten(sharding.gather(trainer.bank.shared_p[None])[0], trainer.backbone.layout)
        else:
            tensors = trainer.bank.expert_tensors(number)
        if sharding.rank == 0:
            name = SHARED if number < 0 else expert_file(number)
            save_file({k: v.cpu().clone() for k, v in tensors.items()}, folder / name)
    if sharding.rank == 0:
        router = {name: p.detach().cpu().clone() for name, p in trainer.router.module.named_parameters()}
        save_file(router, folder / "router.safetensors")
        tree.write(folder / "tree.arrow")
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
        if windows_K is not None:
            (folder / DOMAIN_WINDOWS).write_text(json.dumps(windows_K.tolist()), "utf-8")
        if domain_words:
            (folder / DOMAIN_WORDS).write_text(json.dumps(domain_words, ensure_ascii=False), "utf-8")
