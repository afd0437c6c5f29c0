"""A finished soup on disk, and the models that are made from it (section 2.7).

    soup.json              manifest: the model's configuration, digests of the store, sizes and sha256
    shared.safetensors     by the backbone's parameter names
    expert-000.safetensors ...
    router.safetensors
    tree.arrow  tokenizer.json
    domain-windows.json    number of windows of each domain that training drew from
    domain-words.json      words that set each domain apart, where the store had an atlas

Legend: W mixtures, K domains, N experts, P parameters of one model.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from soe_model.files.bank_files import SHARED, BankFiles, LowRankBankFiles, expert_file, opened
from soe_model.model.backbone import fuse_gelu, hugging_face_config
from soe_model.model.flat_module import ParameterSlot, empty_instances, unflatten
from soe_model.model.router import Router, check_domain_weights
from soe_model.presets import SoupConfig
from storage_schema.errors import UserError
from storage_schema.json_files import read_json
from storage_schema.layout import DOMAIN_WINDOWS, DOMAIN_WORDS
from storage_schema.manifest import Manifest, StoreError, read_manifest
from storage_schema.tree import Tree
from storage_schema.verified import verify_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SoupOfExperts:
    """A soup that is open for making specialists. The bank stays on disk and is read where it is needed."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest, self.digest = folder, manifest, manifest.digest
        try:
            self.config = SoupConfig(**manifest.configuration["soup"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{folder / 'soup.json'} describes no soup: {error!r}. Rebuild it.") from error
        self.router = _router(folder / "router.safetensors", self.config)
        files = (
            BankFiles if self.config.expert_rank is None or not self.config.num_experts else LowRankBankFiles
        )
        self.bank = files(folder, self.config.num_experts)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> SoupOfExperts:
        """Open the soup at `folder`.

        Args:
            verify: check that the manifest names every file that will be read, and check the sha256 of each file that
                was written since the last such check.

        Raises:
            StoreError: a file is missing, altered or of another version; the message names it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, "soup")
        if verify:
            verify_once(folder, manifest)
        soup = cls(folder, manifest)
        if verify:
            experts = map(expert_file, range(soup.config.num_experts))
            read = {SHARED, "router.safetensors", "tree.arrow", "tokenizer.json", *experts}
            if unknown := read - {entry.path for entry in manifest.files}:
                raise StoreError(f"{folder / 'soup.json'} does not name {min(unknown)}. Rebuild the soup.")
        return soup

    @property
    def layout(self) -> list[ParameterSlot]:
        """Where each parameter lies in the flat vector of an instance."""
        return self.bank.slots

    @property
    def sequence_length(self) -> int | None:
        """L of the pretraining; None where the soup does not say."""
        return self.manifest.configuration.get("training", {}).get("sequence_length")

    @property
    def tokenizer_digest(self) -> str | None:
        """sha256 of the tokenizer's file, from the manifest."""
        return next((entry.sha256 for entry in self.manifest.files if entry.path == "tokenizer.json"), None)

    @cached_property
    def tree(self) -> Tree:
        """The centroids of the domains."""
        tree = Tree.read(self.folder / "tree.arrow")
        if tree.num_domains != self.config.num_domains:
            raise StoreError(
                f"{self.folder / 'tree.arrow'} has {tree.num_domains} domains; the soup has {self.config.num_domains}."
            )
        return tree

    @cached_property
    def generic_weights(self) -> np.ndarray:
        """The mixture that the generic twin is trained on, float64 [K]: each domain by its number of windows.

        A soup of an older release has not kept these numbers; there each domain counts by its passages.
        """
        path = self.folder / DOMAIN_WINDOWS
        try:
            found = read_json(path)
        except FileNotFoundError:
            return self.tree.generic_weights
        numbers = isinstance(found, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in found)
        if not numbers or len(found) != self.config.num_domains or not any(found):
            raise StoreError(
                f"{path} is not a number of windows for each of the {self.config.num_domains} domains. Rebuild the "
                "soup."
            )
        return np.array(found) / sum(found)

    @cached_property
    def domain_words(self) -> list[list[str]]:
        """Words that set each domain apart, K lists; an empty list where the store had no atlas."""
        path = self.folder / DOMAIN_WORDS
        try:
            found = read_json(path)
        except FileNotFoundError:
            return []
        lists = isinstance(found, list) and all(isinstance(words, list) for words in found)
        if not lists or not all(isinstance(word, str) for words in found for word in words):
            raise StoreError(
                f"{path} is not a list of words for each domain. Remove it, or rebuild the soup."
            )
        return found

    def coefficients(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        """Expert coefficients, float32 [W, N], of domain weights [W, K]: α = φ(h).

        Raises ValueError for weights that are no distribution over the soup's domains.
        """
        check_domain_weights(domain_weights_WK, self.config.num_domains)
        with torch.no_grad():
            # Row by row: a product of several rows rounds otherwise, and a recipe would depend on the other rows.
            return torch.cat([self.router(weights_1K) for weights_1K in domain_weights_WK.float().split(1)])

    def instances(self, coefficients_WN: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The W instances, float32 [W, P] (eq. 2), in one pass over the experts that any of them uses.

        Args:
            out: float32 [W, P] to write to; by default a new tensor.

        Raises ValueError unless there are N coefficients for each and all are finite.
        """
        wanted = self.config.num_experts
        if coefficients_WN.shape[-1] != wanted or not coefficients_WN.isfinite().all():
            raise UserError(
                f"expected {wanted} finite coefficients, one for each expert, got {_described(coefficients_WN)}. "
                "Those of domain weights are SoupOfExperts.coefficients(weights)."
            )
        instances_WP = empty_instances(len(coefficients_WN), self.bank.num_params) if out is None else out
        self.bank.combine(coefficients_WN.detach().float().contiguous(), instances_WP)
        return instances_WP

    def specialist(self, domain_weights_K: torch.Tensor) -> PreTrainedModel:
        """A stand-alone Hugging Face model for domain weights [K]."""
        weights_1K = torch.as_tensor(domain_weights_K)[None]
        return self.model(self.instances(self.coefficients(weights_1K))[0])

    def model(self, instance_P: torch.Tensor) -> PreTrainedModel:
        """A Hugging Face model whose parameters are views of an instance [P]."""
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        config = hugging_face_config(self._backbone)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().eval()
        model.tie_weights()  # no_init_weights leaves this out too
        fuse_gelu(model)
        return self.attach(model, instance_P)

    @cached_property
    def _backbone(self) -> dict[str, Any]:
        """The backbone's configuration, after a check that its parameters are the bank's; only then memory is taken."""
        from transformers import AutoModelForCausalLM

        wanted = {slot.name: slot.shape for slot in self.layout}
        try:
            config = hugging_face_config(self.config.backbone)
            if getattr(config, "num_hidden_layers", 0) > len(wanted):
                raise UserError(
                    f"it has {config.num_hidden_layers} layers and the bank {len(wanted)} parameters"
                )
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:  # each architecture raises its own errors, and not all are ValueErrors
            raise StoreError(
                f"the backbone of {self.folder / 'soup.json'} cannot be made: {error}"
            ) from error
        found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if found != wanted:
            odd = min(name for name in found | wanted if found.get(name) != wanted.get(name))
            raise StoreError(
                f"the experts of {self.folder} and its backbone disagree on the parameter {odd}."
            )
        return self.config.backbone

    def attach(self, model: PreTrainedModel, instance_P: torch.Tensor) -> PreTrainedModel:
        """Make the parameters of a model of this soup views of another instance [P]."""
        values = unflatten(instance_P, self.layout)
        for name, parameter in model.named_parameters():
            parameter.data = values[name]
        return model


def _router(path: Path, config: SoupConfig) -> Router:
    """Read the router. Its shapes are compared with the manifest's before memory is taken for it."""
    n, hidden, k = config.num_experts, config.router_hidden, config.num_domains
    wanted = {
        "hidden.weight": (hidden, k),
        "hidden.bias": (hidden,),
        "output.weight": (n, hidden),
        "output.bias": (n,),
    }
    with opened(path):
        tensors = load_file(path)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted or any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise StoreError(
            f"{path} is no router of {k} domains and {n} experts: it holds {str(found)[:300]} ({wanted})."
        )
    router = Router(k, n, hidden=hidden, input_scale=1.0, output_scale=1.0)
    router.load_state_dict(tensors)
    return router


def _described(coefficients_WN: torch.Tensor) -> str:
    finite = coefficients_WN.isfinite()
    if finite.all():
        return f"{coefficients_WN.shape[-1]}"
    return f"{coefficients_WN[~finite][0].item()} at expert {(~finite).nonzero()[0][-1].item()}"
