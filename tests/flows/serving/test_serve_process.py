"""`soe serve` as a process of its own: OpenAI's client, and 32 of them."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from flows.serving import server as command
from flows.serving.server import listen
from tests.flows.serving.service import CLIENTS


def test_openais_client(service, served):
    client, name = service.openai(), served[0]
    listed = [model.id for model in client.models.list()]
    assert listed[0] == "generic" and set(served) <= set(listed)
    assert client.models.retrieve(name).id == name
    ask = {"model": name, "max_tokens": 12, "temperature": 0.8, "seed": 3}
    whole = client.completions.create(prompt=["simmer the", "the court"], n=2, **ask)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage.completion_tokens <= 48 and whole.usage.prompt_tokens > 2
    assert len({choice.text for choice in whole.choices}) == 4
    again = client.completions.create(prompt=["simmer the", "the court"], n=2, **ask)
    assert [c.text for c in again.choices] == [c.text for c in whole.choices]
    streamed = {0: "", 1: ""}
    ends = {}
    options = {"include_usage": True}
    events = client.completions.create(prompt="simmer the", n=2, stream=True, stream_options=options, **ask)
    for event in events:
        usage = event.usage
        for choice in event.choices:
            streamed[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert streamed == {i: whole.choices[i].text for i in (0, 1)}
    assert ends == {i: whole.choices[i].finish_reason for i in (0, 1)} and usage.completion_tokens <= 24


def test_openais_client_is_refused_in_its_own_terms(service, served):
    with pytest.raises(openai.AuthenticationError, match="The token is wrong"):
        service.openai(api_key="wrong").models.list()
    client = service.openai()
    with pytest.raises(openai.NotFoundError, match="There is no specialist 'nobody'") as raised:
        client.completions.create(model="nobody", prompt="a")
    assert raised.value.code == "model_not_found" and raised.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="64 positions"):
        client.completions.create(model=served[0], prompt="a", max_tokens=64, stream=True)
    with pytest.raises(openai.BadRequestError, match="logprobs is not supported"):
        client.completions.create(model=served[0], prompt="a", logprobs=1)
    with pytest.raises(openai.BadRequestError, match="no chat format"):
        client.chat.completions.create(model=served[0], messages=[{"role": "user", "content": "a"}])


def test_a_client_that_goes_away_leaves_its_place(service, served):
    with service.openai().completions.create(
        model=served[0], prompt="a", max_tokens=60, n=32, stream=True, temperature=1.9
    ) as events:
        next(iter(events))
    began = time.monotonic()
    service.openai(timeout=20).completions.create(model=served[0], prompt="a", max_tokens=1)
    assert time.monotonic() - began < 5


def test_32_clients_get_each_their_own_answer(service, served):
    """All with the same prompt and seed: an answer of another's model would be another text."""
    client = service.openai(timeout=60)  # a connection for each request that is under way

    def answer(number: int) -> str:
        ask = {"model": served[number], "max_tokens": 12, "temperature": 1.0, "seed": 5}
        if number % 3:
            return client.completions.create(prompt="the", **ask).choices[0].text
        events = client.completions.create(prompt="the", stream=True, **ask)
        return "".join(event.choices[0].text for event in events)

    alone = [answer(number) for number in range(CLIENTS)]
    assert len(set(alone)) > CLIENTS * 0.9
    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(answer, range(CLIENTS))) == alone


def test_a_taken_port_is_an_error_that_names_it(service, home):
    with pytest.raises(ValueError, match=rf"port {service.port} of 127.0.0.1 .*in use.*--port"):
        listen("127.0.0.1", service.port)
    with pytest.raises(ValueError, match="--host 'no.such.host.invalid' is not known"):
        listen("no.such.host.invalid", 8300)


def test_small_answers_are_sent_at_once():
    """With Nagle's algorithm the second piece of an answer waits 40 ms for the client's acknowledgement."""
    delays = []

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport):
            accepted = transport.get_extra_info("socket")
            delays.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0)
            transport.close()

    async def scenario():
        listening = listen("127.0.0.1", 0)
        async with await asyncio.get_running_loop().create_server(Accepted, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(scenario())
    assert delays == [False]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_token_is_printed_to_a_terminal_only(monkeypatch, capsys, terminal):
    """What is printed elsewhere lies in a log; there stands where the token is."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    command._say("127.0.0.1", 8300, "secret-of-the-test", "/keys/token")
    said = capsys.readouterr().out
    assert ("secret-of-the-test" in said) is terminal
    assert "http://127.0.0.1:8300/" in said and "/keys/token" in said
