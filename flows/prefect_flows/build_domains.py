"""The flow ``build-domains``: a corpus becomes domains."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.prefect_flows.run_ray_job import run_ray_job, stop_on_cancellation
from flows.settings import BuildDomains


@flow(name="build-domains", on_cancellation=[stop_on_cancellation])
def build_domains(config: BuildDomains = BuildDomains()) -> dict | State:  # noqa: B008
    """A corpus becomes passages, embeddings, a tree of centroids and the domains."""

    def publish() -> None:
        from flows.prefect_flows.domain_artifacts import (
            publish_domains,  # draws: only a run that succeeded needs it
        )

        publish_domains(config.store)

    return run_ray_job(
        "build-domains",
        config,
        module="flows.jobs.build_domains",
        gpus=int(config.use_gpu),
        publish=publish,
    )
