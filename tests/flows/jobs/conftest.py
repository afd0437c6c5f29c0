"""One toy store for all tests of pretraining, and the undisturbed runs that the others are compared with."""

from __future__ import annotations

import pytest

from flows.jobs import pretrain_soe
from flows.settings import Pretrain
from tests.flows.jobs.pretraining import LONG, SETTINGS
from tests.toy_store import make_store


@pytest.fixture(scope="session")
def toy_home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    make_store(folder / "stores" / "toy", [400, 0, 300, 900])
    return folder


@pytest.fixture(scope="module")
def home(toy_home, ray_cluster):
    """The SOE_HOME of all pretraining runs of the session: each has a name of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOE_HOME", str(toy_home))
        yield toy_home


def _run(home, name, **settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOE_HOME", str(home))
        return pretrain_soe.run(Pretrain(name=name, **settings))


@pytest.fixture(scope="session")
def one_worker(toy_home, ray_cluster):
    """A soup trained through Ray on one worker."""
    return _run(toy_home, "one", **SETTINGS)


@pytest.fixture(scope="session")
def undisturbed(toy_home, ray_cluster):
    """The summary of a run long enough to be killed in its middle, which nothing disturbed."""
    return _run(toy_home, "undisturbed", **SETTINGS | LONG)
