"""The flow ``compare-methods``: every method on one store, and a page on which to choose."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.prefect_flows.run_ray_job import run_ray_job, stop_on_cancellation
from flows.settings import CompareMethods


@flow(name="compare-methods", on_cancellation=[stop_on_cancellation])
def compare_methods(config: CompareMethods = CompareMethods()) -> dict | State:  # noqa: B008
    """The methods on the same stream, tokens and model, and a page on which to choose."""

    def publish() -> None:
        from flows.prefect_flows.comparison_artifacts import publish_comparison

        publish_comparison(config)

    return run_ray_job(
        "compare-methods",
        config,
        module="flows.jobs.compare_methods",
        cpus=config.cores_per_cell,
        publish=publish,
    )
