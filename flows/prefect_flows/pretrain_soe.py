"""The flow ``pretrain-soe``: domains become a soup, or its generic twin."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.prefect_flows.run_ray_job import run_ray_job, stop_on_cancellation
from flows.reporting.artifact_text import run_key
from flows.settings import Pretrain


@flow(name="pretrain-soe", on_cancellation=[stop_on_cancellation])
def pretrain_soe(config: Pretrain = Pretrain()) -> dict | State:  # noqa: B008
    """A store of domains becomes a soup of experts, or its generic twin."""

    def publish() -> None:
        from flows.prefect_flows.result_artifacts import (
            publish_soup,  # draws: only a run that succeeded needs it
        )

        publish_soup(config)

    def card() -> str | None:
        from flows.prefect_flows.result_artifacts import training_card

        return training_card(config)

    workers = config.least_workers
    return run_ray_job(
        "pretrain-soe",
        config,
        module="flows.jobs.pretrain_soe",
        cpus=workers * (1 if config.use_gpu else config.cores_per_worker or 1),
        gpus=workers * config.use_gpu,
        publish=publish,
        card=card,
        card_key=run_key(config.method, config.name),
    )
