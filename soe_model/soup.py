"""A finished soup on disk, and the models made from it (section 2.7).

    soup.json              manifest: the model's configuration, digests of the store, sizes and sha256
    shared.safetensors     by the backbone's parameter names
    expert-000.safetensors ...
    router.safetensors
    tree.arrow  tokenizer.json

Legend: W mixtures, K domains, N experts, P parameters of one model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from soe_model.backbone import build_backbone
from soe_model.flat import FlatModule, ParameterSlot, unflatten
from soe_model.low_rank import expanded
from soe_model.presets import SoupConfig
from soe_model.router import Router
from soe_model.training import SoupTrainer
from storage_schema.manifest import StoreError, read_manifest, verify_files
from storage_schema.tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def expert_file(number: int) -> str:
    """``expert-007.safetensors``."""
    return f"expert-{number:03d}.safetensors"


def write_soup(folder: str | Path, trainer: SoupTrainer, *, tree: Tree, tokenizer: str | Path) -> None:
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
            name = "shared.safetensors" if number < 0 else expert_file(number)
            save_file({k: v.cpu().clone() for k, v in tensors.items()}, folder / name)
    if sharding.rank == 0:
        router = {name: p.detach().cpu().clone() for name, p in trainer.router.module.named_parameters()}
        save_file(router, folder / "router.safetensors")
        tree.write(folder / "tree.arrow")
        shutil.copyfile(tokenizer, folder / "tokenizer.json")


class SoupOfExperts:
    """A soup opened for making specialists. Experts stay on disk and are read when they are needed."""

    def __init__(self, folder: Path, config: SoupConfig, digest: str):
        self.folder, self.config, self.digest = folder, config, digest
        self.router = Router(
            config.num_domains,
            config.num_experts,
            hidden=config.router_hidden,
            input_scale=1.0,
            output_scale=1.0,
        )
        self.router.load_state_dict(load_file(folder / "router.safetensors"))
        self._backbone: FlatModule | None = None

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> SoupOfExperts:
        """Open the soup at `folder`.

        Args:
            verify: check the sha256 of every file first.

        Raises:
            StoreError: naming what is missing, altered or of another version.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, "soup")
        verify_files(folder, manifest, content=verify)
        return cls(folder, SoupConfig(**manifest.configuration["soup"]), manifest.digest)

    @property
    def layout(self) -> list[ParameterSlot]:
        """How the backbone's parameters lie in an instance's flat vector."""
        return self._flat().layout

    def coefficients(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        """phi(h): expert coefficients [W, N] for domain weights [W, K]."""
        if domain_weights_WK.shape[-1] != self.config.num_domains:
            raise ValueError(
                f"{domain_weights_WK.shape[-1]} domain weights for a soup of {self.config.num_domains} domains."
            )
        with torch.no_grad():
            return self.router(domain_weights_WK.float())

    def instances(self, coefficients_WN: torch.Tensor) -> torch.Tensor:
        """The W instances [W, P] (eq. 2), reading each expert once and skipping those nobody uses."""
        if coefficients_WN.shape[-1] != self.config.num_experts or not coefficients_WN.isfinite().all():
            raise ValueError(
                f"expected {self.config.num_experts} finite coefficients, got {tuple(coefficients_WN.shape)}."
            )
        shared_P = self._read("shared.safetensors")
        instances_WP = shared_P.repeat(len(coefficients_WN), 1)
        for j, column_W in enumerate(coefficients_WN.T):
            if column_W.any():
                instances_WP.addr_(column_W, self._read(expert_file(j)))
        return instances_WP

    def specialist(self, domain_weights_K: torch.Tensor) -> PreTrainedModel:
        """A stand-alone Hugging Face model for these domain weights."""
        return self.model(self.instances(self.coefficients(domain_weights_K[None]))[0])

    def model(self, instance_P: torch.Tensor) -> PreTrainedModel:
        """A new Hugging Face model with the parameters of one instance."""
        flat = build_backbone(self.config.backbone, seed=0)
        flat.params_P.copy_(instance_P)
        return flat.module.eval()

    def _flat(self) -> FlatModule:
        if self._backbone is None:
            self._backbone = build_backbone(self.config.backbone, seed=0)
        return self._backbone

    def _read(self, name: str) -> torch.Tensor:
        """One file of the bank as a flat vector [P]."""
        tensors = load_file(self.folder / name)
        if self.config.expert_rank is not None and name != "shared.safetensors":
            return expanded(tensors, self.layout)
        try:
            return torch.cat([tensors[slot.name].reshape(-1) for slot in self.layout])
        except KeyError as error:
            raise StoreError(f"{self.folder / name} lacks the parameter {error}.") from error
