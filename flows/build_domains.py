"""The flow ``build-domains``: a corpus becomes domains."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.carry_out import carry_out, stop_on_cancellation
from flows.settings import BuildDomains


@flow(name="build-domains", on_cancellation=[stop_on_cancellation])
def build_domains(config: BuildDomains = BuildDomains()) -> dict | State:  # noqa: B008
    return carry_out("build-domains", config, module="flows.jobs.build_domains", publish=lambda: None)
