"""The flow ``specialize``: a few texts become a small language model."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.carry_out import carry_out, stop_on_cancellation
from flows.settings import Specialize


@flow(name="specialize", on_cancellation=[stop_on_cancellation])
def specialize(config: Specialize = Specialize()) -> dict | State:  # noqa: B008
    return carry_out("specialize", config, module="flows.jobs.specialize", publish=lambda: None)
