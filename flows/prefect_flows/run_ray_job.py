"""What all flows do: check the cluster, submit a Ray job, follow it, publish its results, stop it when cancelled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Failed, State

from flows import errors
from flows.prefect_flows import ray_job_client as ray_job
from flows.prefect_flows import ray_job_log
from flows.prefect_flows.broken_pipe import survive_without_reader
from flows.prefect_flows.live_progress import Card, ProgressArtifacts
from flows.reporting import job_output
from flows.settings import Settings
from storage_schema import layout


def run_ray_job(
    name: str,
    config: Settings,
    *,
    module: str,
    publish: Callable[[], None],
    card: Card | None = None,
    card_key: str = "",
    cpus: int = 0,
    gpus: int = 0,
) -> dict | State:
    """Run the job `module` with `config` on the Ray cluster, within the flow run of the flow `name`.

    Args:
        name: the flow's name.
        config: the job's settings.
        module: the job's module.
        publish: makes the artifacts of a job that succeeded.
        card: Markdown about the job while it runs, shown under the artifact key `card_key`.
        cpus: logical CPUs the cluster must have.
        gpus: GPUs the cluster must have.

    Returns:
        The job's summary; or, if it cannot run or fails, a FAILED state whose message is its ``error:`` line.
    """
    log = get_run_logger()
    survive_without_reader()
    # This may fail or hang, so it comes first: once a job is submitted, somebody must follow it.
    shown = ProgressArtifacts(name, card=card, card_key=card_key)
    try:
        _check_home()
        client = ray_job.connect()
        ray_job.check_resources(client, cpus=cpus, gpus=gpus)
        job_id = ray_job.still_running(client, _job_ids(name, flow_run.id, flow_run.run_count))
        if job_id:
            log.info("Following the Ray job %s, which is still running.", job_id)
        else:
            job_id = ray_job.submission_id(name, flow_run.id, flow_run.run_count)
            metadata = {
                "flow_run_id": str(flow_run.id),
                "deployment": deployment.name or "none",
                "job_name": name,
            }
            # Prefect's form gives every setting, though nobody chose it: what is as by default stays away.
            config_json = config.model_dump_json(exclude_defaults=True)
            ray_job.submit(client, job_id=job_id, module=module, config_json=config_json, metadata=metadata)
            log.info("Submitted the Ray job %s.", job_id)
        summary = _follow(shown, client, job_id, log)
    except ray_job.JobError as error:
        return Failed(message=f"{errors.PREFIX}{error}")
    finally:
        shown.close()
    try:
        publish()
    except Exception:
        # The work is done and on disk. A picture that cannot be drawn must not make the run a failure.
        log.warning("The run succeeded, but its artifacts could not be published.", exc_info=True)
    return summary


def stop_on_cancellation(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect calls this in the worker. It knows only the flow run, because the flow's process may be dead."""
    client = ray_job.connect()
    for job_id in _job_ids(flow.name, flow_run.id, flow_run.run_count):
        try:
            if ray_job.stop(client, job_id):
                print(f"Stopped the Ray job {job_id}.")
        except ray_job.JobError as error:
            print(f"{errors.PREFIX}{error}")


def _follow(shown: ProgressArtifacts, client: Any, job_id: str, log: Any) -> dict:
    def note(line: str) -> None:
        told = job_output.read(line)
        if told is None:
            if line.strip():
                log.info(line)
        elif told.kind == job_output.PROGRESS:
            shown.update(told.body)
        elif told.kind == job_output.CARD:
            shown.show_card(**told.body)

    try:
        return ray_job_log.follow(client, job_id, note)
    except ray_job.JobError:
        raise
    except BaseException:
        log.warning("Stopping the Ray job %s.", job_id)
        try:
            ray_job.stop(client, job_id)
        except ray_job.JobError as error:
            log.error(str(error))
        raise


def _job_ids(name: str, flow_run_id: str, run_count: int) -> list[str]:
    """The jobs that this run and its earlier attempts may have started, the newest first."""
    return [ray_job.submission_id(name, flow_run_id, count) for count in range(run_count, 0, -1)]


def _check_home() -> None:
    """Raise :class:`JobError` unless the worker can write to ``SOE_HOME``."""
    home: Path = layout.home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"x")
    except OSError as error:
        where = "SOE_HOME" if os.environ.get("SOE_HOME") else "the default SOE_HOME"
        raise ray_job.JobError(
            f"cannot write to {home} ({where}): {error.strerror}. Set SOE_HOME."
        ) from error
