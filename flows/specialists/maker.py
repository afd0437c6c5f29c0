"""Texts → specialists: what `soe specialize`, the flow and the service have in common.

Legend: W specialists, K domains, N experts, P parameters, n windows, L tokens in a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from flows.reporting.progress import progress
from flows.specialists.blend import blended_weights
from flows.specialists.coefficients import Chosen, from_weights, refined
from flows.specialists.losses import Check, LossMeter
from flows.specialists.methods import BY_CHOICE, BY_LEARNING, LEARNED, NEAREST, Method
from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.embedder import reload_embedder
from pipeline.specialists.domain_weights import Assignment, Rule, assign_to_domains
from pipeline.specialists.folds import documents_of_windows
from pipeline.specialists.sets import SpecialistSet
from pipeline.stream.replay import generic_windows
from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.coefficient_learning import learn_coefficients, two_sides
from soe_model.specialists.fine_tuning import fine_tune
from soe_model.specialists.recipe import GENERIC, Recipe, make_recipe
from soe_model.specialists.refining import REFINED
from storage_schema.errors import UserError
from storage_schema.layout import store_place

FEW_TEXTS = 100
"""Below so many the domain weights are drawn again, to say how sure they are."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A specialist before it is written."""

    recipe: Recipe
    instance_P: torch.Tensor
    report: dict[str, Any]
    """``texts`` (how sure the domain weights are), ``losses``, ``learned``."""


class _Start(NamedTuple):
    """Of what a specialist is put together."""

    weights_K: torch.Tensor
    coefficients_N: torch.Tensor
    instance_P: torch.Tensor
    said: dict[str, Any]
    """How the weights were chosen, for the recipe."""


class SpecialistMaker:
    """A soup opened with all that turns texts into specialists of it.

    Args:
        device: of the embedder.
        show: how progress is shown (see :func:`flows.reporting.progress.progress`).
    """

    def __init__(self, soup: SoupOfExperts, *, device: str = "cpu", show: Callable[..., Any] = progress):
        self.soup, self.device, self.show = soup, device, show
        self.meter = LossMeter(soup)

    @cached_property
    def embedder(self) -> Any:
        """The model that the soup's domains were made with. Raises StoreError if another is found under its name."""
        made_with = self.soup.manifest.configuration["embedder"]
        return reload_embedder(made_with, made_with.get("weights"), device=self.device)[1]

    def assign(self, texts: Sequence[str], rule: Rule = "flat") -> Assignment:
        """Where the texts fall among the domains. Raises ValueError for no texts, or one without an embedding."""
        vectors_ND = embed_texts(self.embedder, texts) if texts else np.empty((0, 1), np.float32)
        return assign_to_domains(vectors_ND, self.soup.tree, rule=rule)

    def make(
        self,
        sets: Sequence[SpecialistSet],
        method: Method,
        *,
        twin: torch.nn.Module | None = None,
        check: Check = lambda: None,
    ) -> Iterator[Made]:
        """The specialists of the sets, in order; small ones are put together many in one pass over the bank.

        Each is given as soon as it is made; a caller that lets go of it before it asks for the next holds one at a
        time. Raises ValueError for a set without texts, or too little text to learn from.
        """
        with self.show("place texts", "sets") as report:
            assignments = []
            for number, one in enumerate(sets):
                report(number, len(sets))
                check()
                assignments.append(self.assign(one.texts, method.rule))
            report(len(sets), len(sets))
        chosen = self._choose(sets, assignments, method, check)
        with self.show("make specialists", "models") as report:
            instances = self._instances(chosen.coefficients_WN)
            for w, one in enumerate(sets):
                report(w, len(sets))
                check()
                yield self._make_one(
                    one,
                    assignments[w],
                    _Start(chosen.weights_WK[w], chosen.coefficients_WN[w], next(instances), chosen.said[w]),
                    method,
                    twin,
                    check,
                )
            report(len(sets), len(sets))

    def _choose(
        self,
        sets: Sequence[SpecialistSet],
        assignments: Sequence[Assignment],
        method: Method,
        check: Check,
    ) -> Chosen:
        weights_WK = np.stack([assignment.domain_weights for assignment in assignments])
        if method.name == GENERIC:
            weights_WK = np.stack([self.soup.generic_weights] * len(sets))
        if method.name not in BY_CHOICE:
            return from_weights(self.soup, weights_WK)
        with self.show("choose shares", "sets") as report:
            place = partial(self.assign, rule=method.rule)
            found = blended_weights(self.meter, sets, assignments, place, check=check)
            chosen = from_weights(self.soup, *found)
            report(len(sets), len(sets))
        if method.name == REFINED:
            with self.show("refine coefficients", "sets") as report:
                chosen = refined(self.meter, sets, assignments, chosen, check=check, report=report)
                report(len(sets), len(sets))
        return chosen

    def _make_one(
        self,
        one: SpecialistSet,
        assignment: Assignment,
        start: _Start,
        method: Method,
        twin: torch.nn.Module | None,
        check: Check,
    ) -> Made:
        coefficients_N, instance_P = start.coefficients_N, start.instance_P
        report: dict[str, Any] = {"texts": assignment.describe()}
        if one.notes:
            report["texts"]["notes"] = one.notes
        if method.name in BY_LEARNING:
            coefficients_N, instance_P, report["learned"] = self._learn(
                one, coefficients_N, instance_P, method
            )
        if one.evaluation:
            report["losses"] = self.meter.compare(
                one.evaluation,
                assignment,
                start.coefficients_N,
                instance_P if method.name in BY_LEARNING else None,
                twin=twin,
                resamples=method.bootstrap if len(one.texts) < FEW_TEXTS else 0,
                check=check,
            )
        # Learned coefficients and fine-tuned parameters no longer come from the domain weights alone.
        recipe = make_recipe(
            self.soup,
            coefficients_N=coefficients_N,
            domain_weights_K=start.weights_K,
            how=method.how(one) | start.said,
        )
        return Made(recipe=recipe, instance_P=instance_P, report=report)

    def _learn(
        self, one: SpecialistSet, start_N: torch.Tensor, instance_P: torch.Tensor, method: Method
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        windows_nL1 = self.meter.windows(one.texts)
        tokens = [len(ids) for ids in self.meter.tokenizer.encode(one.texts)]
        length = windows_nL1.shape[1] - 1
        sides = two_sides(
            windows_nL1, documents_of_windows(tokens, one.documents, len(windows_nL1), length).tolist()
        )
        if not len(sides[0]):
            raise UserError(
                f"specialist set {one.name} has {len(windows_nL1)} windows of {windows_nL1.shape[1] - 1} tokens; "
                f"{method.name} needs at least 2. Give more text, or use the method {NEAREST}."
            )
        with self.show(f"learn {one.name}"[:24], "steps") as report:
            if method.name == LEARNED:
                start_N, learned = learn_coefficients(
                    self.soup, start_N, *sides, method.learning, report=report
                )
                return start_N, self.soup.instances(start_N[None])[0], asdict(learned)
            params_P = instance_P.clone()
            instance_P, learned = fine_tune(
                self.soup.model(params_P),
                params_P,
                *sides,
                method.learning,
                replay=self._replay(method),
                replay_share=method.replay_share,
                report=report,
            )
            return start_N, instance_P, asdict(learned)

    def _replay(self, method: Method) -> Callable[[int], torch.Tensor] | None:
        """Windows of the generic mixture of a store, other ones at each call."""
        if not method.replay_share or method.replay_store is None:
            return None
        return generic_windows(store_place(method.replay_store), self.meter.length, seed=method.learning.seed)

    def _instances(self, coefficients_WN: torch.Tensor) -> Iterator[torch.Tensor]:
        """The instances of the rows, each pass over the bank once those of the former were taken."""
        for group_WN in coefficients_WN.split(self.meter.together):
            yield from self.soup.instances(group_WN)
