"""What a specialist gains over the generic instance of its soup, in one line that every door says alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soe_model.specialists.evaluation import student_90
from soe_model.specialists.recipe import GENERIC
from soe_model.specialists.refining import REFINED, steps_taken

NO_GAIN = "No gain: use the generic model"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Loss of the generic instance minus the specialist's, nats per token."""

    nats: float
    low: float
    high: float
    """``low`` to ``high``: the 90% interval."""
    measured: str
    """On what, in words."""

    @property
    def sure(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0

    def __str__(self) -> str:
        return (
            f"{self.nats:+.4f} nats per token over the generic instance "
            f"(90%: {self.low:+.4f} to {self.high:+.4f}), {self.measured}"
        )


def gain_of(how: Mapping[str, Any], counts: Mapping[str, Any]) -> Gain | None:
    """The gain by what a specialist's manifest says, on text kept apart if it was measured on any, else as its share
    was chosen; None if neither says.

    Args:
        how: the recipe's, or the manifest's configuration.
        counts: of the manifest, with ``losses`` if there are any.
    """
    losses = counts.get("losses") or {}
    try:  # a recipe from elsewhere may say anything
        if "gain_interval" in losses:
            low, high = map(float, losses["gain_interval"])
            nats = float(losses["generic_instance"]) - float(losses["made"])
            return Gain(
                nats=nats, low=low, high=high, measured=f"on {losses['windows']:,} windows of text kept apart"
            )
        if steps_taken(how):
            refined = how[REFINED]
            nats, error, units = refined["gain"], refined["gain_error"], refined["units"]
        else:
            blend = how["blend"]
            name = f"{blend['share']:g}"
            nats, error, units = -blend["differences"][name], blend["errors"][name], blend["units"]
        half = student_90(units) * float(error)
        return Gain(
            nats=float(nats),
            low=nats - half,
            high=nats + half,
            measured="cross-fitted on the texts given, which also chose how far it goes: each under a specialist of "
            "the other half",
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def gain_line(how: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    """One sentence for a person; arguments as :func:`gain_of`."""
    if how.get("method") == GENERIC:
        return "This is the generic model."
    if is_generic(how) and not how["blend"].get("units"):
        return f"{NO_GAIN}, which this is: there was too little text to measure any other."
    if is_generic(how):
        steps = ", and no steps from there" if REFINED in how else ""
        return f"{NO_GAIN}, which this is: no domain weights of the texts were surely better on them{steps}."
    gain = gain_of(how, counts)
    if gain is None:
        return "Gain over the generic instance: not measured."
    if gain.sure:
        return f"Gain: {gain}."
    return (
        f"{NO_GAIN}, which the method {GENERIC} makes ({gain})."
        if gain.nats <= 0
        else f"No sure gain: the generic model may do as well ({gain})."
    )


def is_generic(how: Mapping[str, Any]) -> bool:
    """Whether the specialist was made as the generic instance itself."""
    blend = how.get("blend")
    if how.get("method") == GENERIC:
        return True
    return isinstance(blend, Mapping) and blend.get("share") == 0 and not steps_taken(how)
