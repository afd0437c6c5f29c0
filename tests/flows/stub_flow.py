"""A flow whose job is :mod:`tests.flows.stub_job`, deployed on the stack of the tests as ``stub/stub``."""

from prefect import flow

from flows.prefect_flows.run_ray_job import run_ray_job, stop_on_cancellation
from flows.settings import BuildDomains


@flow(name="stub", on_cancellation=[stop_on_cancellation])
def stub(config: BuildDomains = BuildDomains()):  # noqa: B008
    return run_ray_job(
        "stub",
        config,
        module="tests.flows.stub_job",
        gpus=int(config.use_gpu),
        publish=lambda: None,
    )
