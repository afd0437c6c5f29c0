"""What instances of a soup are worth on texts: what `soe specialize`, `soe score` and the service measure.

Legend: W instances, U of them different, K domains, N experts, P parameters, n windows, L tokens in a window.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from pipeline.specialists.domain_weights import Assignment
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import empty_instances
from soe_model.specialists.evaluation import bootstrap_interval, normal_interval, window_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Check = Callable[[], None]
"""Raises when the request was cancelled or timed out."""
Name = TypeVar("Name", bound=Hashable)
"""What a set of windows is called."""
TOGETHER_BYTES = 64 << 20
"""The most bytes of instances that are made in one pass over the bank; larger ones are made and held one by one."""


class LossMeter:
    """Windows of texts, and the losses of instances on them, in nats per token."""

    def __init__(self, soup: SoupOfExperts):
        self.soup = soup
        self.generic: PreTrainedModel | None = None
        """The generic mixture's model, where the caller has it in memory anyway."""

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return load_tokenizer(self.soup.folder / "tokenizer.json")

    @cached_property
    def generic_N(self) -> torch.Tensor:
        """Coefficients of the instance of the mixture that the generic twin is trained on."""
        return self._coefficients(self.soup.generic_weights)

    @property
    def length(self) -> int:
        """L: of the pretraining, or what the model takes."""
        return self.soup.sequence_length or int(self.soup.config.backbone.get("n_positions", 512))

    @property
    def together(self) -> int:
        """Instances in one pass over the bank."""
        return max(1, TOGETHER_BYTES // (4 * self.soup.bank.num_params))

    def windows(self, texts: Sequence[str]) -> torch.Tensor:
        """The texts as windows of L + 1 tokens, int64 [n, L + 1]; one shorter window where they fill none."""
        windows = self.tokenizer.encode_windows(texts, self.length)
        if not len(windows) and texts:
            tokens = sum(map(len, self.tokenizer.encode(texts)))
            windows = self.tokenizer.encode_windows(texts, max(1, tokens - 1))
        return torch.from_numpy(windows)

    def losses(
        self, coefficients_WN: torch.Tensor, windows_nL1: torch.Tensor, *, check: Check = lambda: None
    ) -> torch.Tensor:
        """Losses of the instances on each window, float64 [W, n]."""
        return self.losses_of_sets(coefficients_WN, {"": windows_nL1}, check=check)[""]

    def losses_of_sets(
        self,
        coefficients_WN: torch.Tensor,
        windows: Mapping[Name, torch.Tensor],
        *,
        check: Check = lambda: None,
    ) -> dict[Name, torch.Tensor]:
        """The same of several sets of windows, by name; equal instances are made and measured once."""
        everyone = range(len(coefficients_WN))
        return self.losses_of_some(coefficients_WN, windows, dict.fromkeys(windows, everyone), check=check)

    def losses_of_some(
        self,
        coefficients_WN: torch.Tensor,
        windows: Mapping[Name, torch.Tensor],
        measured: Mapping[Name, Sequence[int]],
        *,
        check: Check = lambda: None,
    ) -> dict[Name, torch.Tensor]:
        """The same, where each set of windows is measured under some of the instances only.

        Args:
            measured: set of windows → the rows of the coefficients that it is measured under.

        Returns:
            Set of windows → float64 [instances that it is measured under, n].
        """
        model = None
        numbers: dict[bytes, int] = {}
        number_W = [numbers.setdefault(row_N.numpy().tobytes(), len(numbers)) for row_N in coefficients_WN]
        distinct_UN = coefficients_WN[[number_W.index(number) for number in range(len(numbers))]]
        wanted = {name: {number_W[row] for row in rows} for name, rows in measured.items()}
        found: dict[Name, dict[int, torch.Tensor]] = {name: {} for name in windows}
        buffer_UP = empty_instances(min(self.together, len(distinct_UN)), self.soup.bank.num_params)
        number = 0
        for group_UN in distinct_UN.split(self.together):
            for instance_P in self.soup.instances(group_UN, buffer_UP[: len(group_UN)]):
                model = self.soup.model(instance_P) if model is None else self.soup.attach(model, instance_P)
                for name, windows_nL1 in windows.items():
                    if number in wanted[name]:
                        check()
                        found[name][number] = window_losses(model, windows_nL1)
                number += 1
        return {
            name: torch.stack([found[name][number_W[row]] for row in rows]) for name, rows in measured.items()
        }

    def compare(
        self,
        texts: Sequence[str],
        assignment: Assignment,
        made_N: torch.Tensor,
        learned_P: torch.Tensor | None = None,
        *,
        twin: torch.nn.Module | None = None,
        resamples: int = 0,
        check: Check = lambda: None,
    ) -> dict[str, Any]:
        """Losses of a specialist on texts, and of what it is measured against.

        Args:
            assignment: of the texts that it was made of.
            made_N: coefficients of what was made.
            learned_P: what was made; None: the instance of `made_N`.
            twin: a model that was trained without experts.
            resamples: domain weights of the texts drawn again: how far Algorithm 3's loss depends on these texts.
        """
        windows_nL1 = self.windows(texts)
        rows = {
            "nearest_domain": self._coefficients(assignment.heaviest_domain),
            "nearest_centroids": self._coefficients(assignment.domain_weights),
        }
        if learned_P is None:
            rows["made"] = made_N
        if self.generic is None:
            rows["generic_instance"] = self.generic_N
        measured = self.losses(torch.stack([*rows.values()]), windows_nL1, check=check)
        losses = dict(zip(rows, measured, strict=True))
        if learned_P is not None:
            losses["made"] = window_losses(self.soup.model(learned_P), windows_nL1)
        if self.generic is not None:
            losses["generic_instance"] = window_losses(self.generic, windows_nL1)
        gains_n = losses["generic_instance"] - losses["made"]
        found: dict[str, Any] = {"windows": len(windows_nL1)}
        found |= {name: losses_n.mean().item() for name, losses_n in losses.items()}
        if twin is not None:
            found["twin"] = window_losses(twin, windows_nL1).mean().item()
        if len(gains_n) > 1:
            found["gain_interval"] = list(bootstrap_interval(gains_n))
        if resamples:
            drawn_bK = torch.from_numpy(assignment.resampled(resamples)).float()
            losses_b = self.losses(self.soup.coefficients(drawn_bK), windows_nL1, check=check).mean(1)
            if losses_b.std() > 0:  # texts of one domain draw the same again, which says nothing of others
                interval = normal_interval(found["nearest_centroids"], losses_b)
                found["nearest_centroids_interval"] = list(interval)
        return found

    def _coefficients(self, weights_K: np.ndarray) -> torch.Tensor:
        return self.soup.coefficients(torch.from_numpy(weights_K).float()[None])[0]
