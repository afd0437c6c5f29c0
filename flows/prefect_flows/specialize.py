"""The flow ``specialize``: a few texts become a small language model."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.prefect_flows.run_ray_job import run_ray_job, stop_on_cancellation
from flows.settings import Specialize


@flow(name="specialize", on_cancellation=[stop_on_cancellation])
def specialize(config: Specialize = Specialize()) -> dict | State:  # noqa: B008
    """A few texts become a small stand-alone language model, for one or many specialist sets."""

    def publish() -> None:
        from flows.prefect_flows.result_artifacts import (
            publish_specialists,  # draws: only a run that succeeded needs it
        )

        publish_specialists(config)

    return run_ray_job(
        "specialize",
        config,
        module="flows.jobs.specialize",
        gpus=int(config.use_gpu),
        publish=publish,
    )
