"""One soup, and the service of it, for all of these tests."""

from __future__ import annotations

import signal

import httpx
import pytest

from flows.serving.specialist_cache import Specialists
from soe_model.files.soup import SoupOfExperts
from tests.flows.serving.service import ALGORITHM_3, BEARER, CLIENTS, Service, ask
from tests.served_soup import TOPICS, make_served_soup, sentences


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A SOE_HOME with one soup, `topics`."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOE_HOME", str(folder))
        make_served_soup(folder / "soups" / "topics")
        yield folder


@pytest.fixture(scope="session")
def soup(home):
    return SoupOfExperts.open(home / "soups" / "topics")


@pytest.fixture(scope="session")
def specialists(soup):
    return Specialists(soup, cache=2, method=ALGORITHM_3[1])


@pytest.fixture(scope="session")
def client(specialists):
    """The application in this process, asked with the token."""
    with ask(specialists) as client:
        client.headers.update(BEARER)
        yield client


@pytest.fixture(scope="session")
def made(client):
    """A specialist for cooking and a little law."""
    texts = [*sentences("cooking", 12), *sentences("law", 4)]
    answer = client.post("/api/specialists", json={"texts": texts})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="session")
def service(home):
    service = Service(home)
    yield service
    service.process.send_signal(signal.SIGTERM)
    service.drained.join(60)
    assert service.said.endswith("Stopped.\n") and service.process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.url)


@pytest.fixture(scope="session")
def served(service):
    """Ids of as many specialists as there are clients, each of another mixture."""
    names = list(TOPICS)
    with httpx.Client(
        base_url=service.url, headers={"Authorization": f"Bearer {service.token}"}, timeout=60
    ) as web:
        ids = []
        for number in range(CLIENTS):
            one, other = names[number % 8], names[(number + 1 + number // 8) % 8]
            texts = [*sentences(one, 3 + number // 8), *sentences(other, 2)]
            ids.append(web.post("/api/specialists", json={"texts": texts}).json()["id"])
    assert len(set(ids)) == CLIENTS
    return ids
