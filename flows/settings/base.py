"""What all settings have in common, and the refusal of those that a choice does not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from storage_schema.errors import UserError


class Settings(BaseModel):
    """Parameters of a flow: unknown names are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def refuse_unused(settings: Settings, choice: str, reads: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for a setting that was given and is read only where `choice` is another; None is as not given.

    Args:
        choice: the setting that decides.
        reads: each of its values → the settings that only some of them read.
    """
    chosen = getattr(settings, choice)
    for name in dict.fromkeys(name for used in reads.values() for name in used):
        value = getattr(settings, name)
        given = name in settings.model_fields_set and value is not None
        if given and name not in reads.get(chosen, ()):
            others = " or ".join(other for other, used in reads.items() if name in used)
            if chosen is None:
                raise UserError(
                    f"{name} is {value!r}, which only {choice} {others} uses: leave it out, or choose it."
                )
            raise UserError(
                f"{name} is {value!r}, which {choice}={chosen} does not use: leave it out, or choose {choice} "
                f"{others}."
            )
