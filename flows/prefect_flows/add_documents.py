"""The flow ``add-documents``: more documents join a store."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.prefect_flows.run_ray_job import run_ray_job, stop_on_cancellation
from flows.settings import AddDocuments


@flow(name="add-documents", on_cancellation=[stop_on_cancellation])
def add_documents(config: AddDocuments) -> dict | State:
    """New documents are embedded and assigned to the tree that the store has; nothing in it is rewritten."""

    def publish() -> None:
        from flows.prefect_flows.domain_artifacts import (
            publish_domains,  # draws: only a run that succeeded needs it
        )

        publish_domains(config.store)

    return run_ray_job(
        "add-documents",
        config,
        module="flows.jobs.add_documents",
        gpus=int(config.use_gpu),
        publish=publish,
    )
