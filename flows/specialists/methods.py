"""How specialists are made of their texts: the methods, and what a job's settings say of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from flows.settings import SpecialistMethod, Specialize, refuse_unused
from pipeline.specialists.domain_weights import Rule
from pipeline.specialists.sets import SpecialistSet
from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.blending import BLENDED
from soe_model.specialists.coefficient_learning import Learning
from soe_model.specialists.fine_tuning import LEARNING_RATE
from soe_model.specialists.recipe import FINE_TUNED
from soe_model.specialists.refining import REFINED
from storage_schema.errors import UserError
from storage_schema.manifest import content_digest

NEAREST, LEARNED = "nearest-centroids", "learned-coefficients"
BY_LEARNING = (LEARNED, FINE_TUNED)
BY_CHOICE = (BLENDED, REFINED)
SETTINGS_OF_METHOD = {
    LEARNED: ("learning_steps", "learning_rate"),
    FINE_TUNED: ("learning_steps", "learning_rate", "replay_store", "replay_share"),
}
"""The settings that each method reads besides those of all."""
MOST_REFINED = 30_000_000
"""Numbers of the largest bank whose specialists are refined by default: each takes 13 to 16 seconds of one
core with a bank of 18 million, 2 with one of 1.6 million."""
RATES = {LEARNED: 0.1, FINE_TUNED: LEARNING_RATE}
"""Where the settings give none: learned coefficients move by a part of their root mean square."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How specialists are made. Raises ValueError for an unknown name, and for a store to replay without its share."""

    name: str = BLENDED
    rule: Rule = "flat"
    learning: Learning = field(default_factory=Learning)
    replay_store: str | None = None
    replay_share: float = 0.0
    bootstrap: int = 16
    """Resamples of few texts, to say how sure the domain weights are; 0: none."""

    def __post_init__(self) -> None:
        methods = get_args(SpecialistMethod)
        if self.name not in methods:
            raise UserError(f"method is {self.name!r}; it must be one of {', '.join(methods)}.")
        if self.bootstrap == 1:
            raise UserError("bootstrap is 1; one resample has no spread. Give 0 for none, or 2 or more.")
        if self.replay_share and self.replay_store is None:
            raise UserError(
                f"replay_share is {self.replay_share}: it needs a store to replay (replay_store)."
            )
        if self.replay_store is not None and not self.replay_share:
            raise UserError(f"replay_store is {self.replay_store!r} without a share of it (replay_share).")

    def how(self, one: SpecialistSet) -> dict[str, Any]:
        """What a recipe says of it."""
        said: dict[str, Any] = {"method": self.name, "rule": self.rule, "num_texts": len(one.texts)}
        said["texts"] = content_digest(one.texts)
        if self.name in BY_LEARNING:
            said["learning"] = asdict(self.learning)
            if not self.learning.relative:  # as recipes say that know no other rates
                del said["learning"]["relative"]
        if self.name == FINE_TUNED and self.replay_share:
            said |= {"replay_share": self.replay_share}
        return said


def method_of(settings: Specialize) -> Method:
    """What the settings say of how specialists are made; without a method they are blended.

    Raises ValueError for a setting that the method has no use for.
    """
    refuse_unused(settings, "method", SETTINGS_OF_METHOD)
    return Method(
        name=settings.method or Method.name,
        rule=settings.rule,
        learning=Learning(
            steps=settings.learning_steps,
            learning_rate=settings.learning_rate or RATES.get(settings.method or "", Learning.learning_rate),
            relative=settings.learning_rate is None and settings.method == LEARNED,
        ),
        replay_store=settings.replay_store,
        replay_share=settings.replay_share,
        bootstrap=settings.bootstrap,
    )


def default_method(soup: SoupOfExperts) -> str:
    """How specialists of the soup are made if nobody says how; low-rank experts count as whole ones."""
    experts = soup.config.num_experts  # a twin has none, and no coefficients to learn
    return REFINED if experts and soup.bank.num_params * (1 + experts) <= MOST_REFINED else BLENDED


def with_method(settings: Specialize, soup: SoupOfExperts) -> Specialize:
    """The same; where they name no method, with the default one, which is printed."""
    if settings.method is not None:
        return settings
    print(f"Method: {default_method(soup)}.", flush=True)
    return settings.model_copy(update={"method": default_method(soup)})
