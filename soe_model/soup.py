"""A finished soup on disk, and the models made from it (section 2.7).

    soup.json              manifest: the model's configuration, digests of the store, sizes and sha256
    shared.safetensors     by the backbone's parameter names
    expert-000.safetensors ...
    router.safetensors
    tree.arrow  tokenizer.json
    domain-words.json   what sets each domain apart, where the store had an atlas

Legend: W mixtures, K domains, N experts, P parameters of one model.
"""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from soe_model.backbone import hugging_face_config
from soe_model.bank_files import SHARED, BankFiles, LowRankBankFiles, expert_file
from soe_model.flat import ParameterSlot, unflatten
from soe_model.presets import SoupConfig
from soe_model.router import Router
from soe_model.training import SoupTrainer
from storage_schema.layout import DOMAIN_WORDS
from storage_schema.manifest import Manifest, StoreError, read_manifest
from storage_schema.tree import Tree
from storage_schema.verified import verify_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_soup(
    folder: str | Path,
    trainer: SoupTrainer,
    *,
    tree: Tree,
    tokenizer: str | Path,
    domain_words: list[list[str]] | None = None,
) -> None:
    """Write the trainer's bank and router into `folder` (a stage's work folder); collective over ranks.

    Rank 0 writes; the other ranks send it their columns, one expert at a time. The manifest is written by
    whoever owns the stage.
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
        if domain_words:
            (folder / DOMAIN_WORDS).write_text(json.dumps(domain_words, ensure_ascii=False), "utf-8")


class SoupOfExperts:
    """A soup opened for making specialists: the bank stays on disk, mapped, and is read where it is needed."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest, self.digest = folder, manifest, manifest.digest
        self.config = SoupConfig(**manifest.configuration["soup"])
        self.router = Router(
            self.config.num_domains,
            self.config.num_experts,
            hidden=self.config.router_hidden,
            input_scale=1.0,
            output_scale=1.0,
        )
        self.router.load_state_dict(load_file(folder / "router.safetensors"))
        files = (
            BankFiles if self.config.expert_rank is None or not self.config.num_experts else LowRankBankFiles
        )
        self.bank = files(folder, self.config.num_experts)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> SoupOfExperts:
        """Open the soup at `folder`.

        Args:
            verify: check the sha256 of every file that was written since the last such check.

        Raises:
            StoreError: naming what is missing, altered or of another version.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, "soup")
        if verify:
            verify_once(folder, manifest)
        return cls(folder, manifest)

    @property
    def layout(self) -> list[ParameterSlot]:
        """How the parameters lie in an instance's flat vector."""
        return self.bank.slots

    @property
    def sequence_length(self) -> int | None:
        """Of the pretraining; None where the soup does not say."""
        return self.manifest.configuration.get("training", {}).get("sequence_length")

    @cached_property
    def tree(self) -> Tree:
        """The centroids of the domains."""
        return Tree.read(self.folder / "tree.arrow")

    @cached_property
    def domain_words(self) -> list[list[str]]:
        """What sets each domain apart, K lists of words; empty where the store had no atlas."""
        try:
            return json.loads((self.folder / DOMAIN_WORDS).read_text("utf-8"))
        except FileNotFoundError:
            return []

    def coefficients(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        """phi(h): expert coefficients [W, N] for domain weights [W, K]."""
        if domain_weights_WK.shape[-1] != self.config.num_domains:
            raise ValueError(
                f"{domain_weights_WK.shape[-1]} domain weights for a soup of {self.config.num_domains} domains."
            )
        with torch.no_grad():
            return self.router(domain_weights_WK.float())

    def instances(self, coefficients_WN: torch.Tensor) -> torch.Tensor:
        """The W instances [W, P] (eq. 2) in one pass over the bank; experts that none of them uses are not read.

        Raises ValueError for coefficients of another number or not finite.
        """
        wanted = self.config.num_experts
        if coefficients_WN.shape[-1] != wanted or not coefficients_WN.isfinite().all():
            raise ValueError(f"expected {wanted} finite coefficients, got {_described(coefficients_WN)}.")
        instances_WP = torch.empty(len(coefficients_WN), self.bank.num_params)
        self.bank.combine(coefficients_WN.detach().float().contiguous(), instances_WP)
        return instances_WP

    def specialist(self, domain_weights_K: torch.Tensor) -> PreTrainedModel:
        """A stand-alone Hugging Face model for these domain weights."""
        weights_1K = torch.as_tensor(domain_weights_K)[None]
        return self.model(self.instances(self.coefficients(weights_1K))[0])

    def model(self, instance_P: torch.Tensor) -> PreTrainedModel:
        """A Hugging Face model whose parameters are views of one instance."""
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        with no_init_weights():
            model = AutoModelForCausalLM.from_config(hugging_face_config(self.config.backbone)).float().eval()
        model.tie_weights()  # left out together with the first values
        return self.attach(model, instance_P)

    def attach(self, model: PreTrainedModel, instance_P: torch.Tensor) -> PreTrainedModel:
        """Make the parameters of a model of this soup views of another instance."""
        parameters = dict(model.named_parameters())
        values = unflatten(instance_P, self.layout)
        if parameters.keys() != values.keys():
            odd = min(parameters.keys() ^ values.keys())
            raise StoreError(
                f"the experts of {self.folder} and its backbone disagree on the parameter {odd}."
            )
        for name, parameter in parameters.items():
            parameter.data = values[name]
        return model


def _described(coefficients_WN: torch.Tensor) -> str:
    finite = coefficients_WN.isfinite()
    if finite.all():
        return f"{coefficients_WN.shape[-1]}"
    return f"{coefficients_WN[~finite][0].item()} at expert {(~finite).nonzero()[0][-1].item()}"
