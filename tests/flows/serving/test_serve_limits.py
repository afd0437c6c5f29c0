"""How much `soe serve` may be asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.serving import completions
from flows.serving.access import Access
from flows.serving.compute_queue import ComputeQueue
from flows.serving.guard import Guard
from flows.serving.limits import Limits, Refused
from flows.serving.specialist_cache import Specialists
from tests.flows.serving.service import BEARER, TOKEN, ask, refusal
from tests.served_soup import POSITIONS, sentences


@pytest.fixture(scope="module")
def strict(soup):
    """The same with narrow limits, and one place in the queue."""
    limits = Limits(
        body_bytes=20_000,
        texts=3,
        characters=200,
        max_tokens=50,
        prompts=2,
        completions=4,
        prompt_characters=900,
    )
    with ask(Specialists(soup, limits=limits), max_queue=1) as client:
        client.headers.update(BEARER)
        yield client


def test_too_much_is_refused_with_the_bound(strict):
    def complete(**body):
        return strict.post("/v1/completions", json={"model": "generic", "prompt": "a", **body})

    def texts(texts):
        return strict.post("/api/specialists", json={"texts": texts})

    assert "4, and at most 3" in refusal(texts(["a"] * 4), 413)
    assert "201, and at most 200" in refusal(texts("a" * 201), 413)
    assert "at most 20,000 are taken" in refusal(texts("a" * 20_001), 413)
    chunks = (b"a" * 5000 for _ in range(5))
    assert "at most 20,000" in refusal(strict.post("/api/specialists", content=chunks), 413)
    assert "max_tokens: 51, and at most 50" in refusal(complete(max_tokens=51), 413)
    assert "prompts: 3, and at most 2" in refusal(complete(prompt=["a"] * 3), 413)
    assert "completions: 6, and at most 4" in refusal(complete(prompt=["a", "b"], n=3), 413)
    assert "in a prompt: 901" in refusal(complete(prompt="a" * 901), 413)
    assert "stop sequences: 5" in refusal(complete(stop=["a"] * 5), 413)
    long = refusal(complete(prompt="the " * 40, max_tokens=40), 400)
    assert f"{POSITIONS} positions" in long and f"Shorten the prompt to {POSITIONS - 40} tokens" in long


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"{}", "model: Field required"),
        (b'{"model": "generic", "temprature": 1}', "temprature is not a parameter"),
        (b'{"model": "generic", "prompt": [1, 2]}', "token ids are not taken"),
        (b'{"model": "generic", "prompt": "\\ud800"}', "not Unicode text"),
        (b'{"model": "generic", "\\ud800": 1}', "unicode string"),
        (b'{"model": "generic", "max_tokens": 0}', "max_tokens: Input should be greater"),
        (b'{"model": "generic", "temperature": NaN}', "temperature"),
        (b'{"model": "generic", "logprobs": 2}', "logprobs is not supported"),
        (b'{"model": "generic", "echo": true}', "echo is not supported"),
        (b'{"model": "generic", "stream": "yes"}', "stream: Input should be a valid boolean"),
    ],
)
def test_what_is_not_understood_is_said(client, body, said):
    answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert said in refusal(answer, 400)


def test_the_coldest_temperatures_are_0(client):
    def text(temperature):
        body = {"model": "generic", "prompt": "the", "temperature": temperature, "max_tokens": 8}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    assert text(0) == text(1e-300) == text(1e-38) == text(1e-9)


def test_a_stream_that_fails_ends_in_an_error(client, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr(completions, "complete", fails)
    answer = client.post("/v1/completions", json={"model": "generic", "prompt": "a", "stream": True})
    last = [line for line in answer.text.splitlines() if line][-1]
    assert "The service failed" in last and "a fault" not in last


def test_a_client_that_goes_before_its_stream_begins_leaves_its_place(client):
    """The stream's own end gives the place back, and what never began has no end."""
    body = json.dumps({"model": "generic", "prompt": "a", "stream": True}).encode()
    headers = {"host": "127.0.0.1:8300", "content-type": "application/json", **BEARER}
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        raise OSError("the client has gone")

    with contextlib.suppress(Exception):
        asyncio.run(client.app(scope, receive, send))
    assert client.app.state.queue.waiting == 0


def test_unusable_texts_are_refused(client):
    for texts in ([], "", [" \n"]):
        assert "There is no text" in refusal(client.post("/api/specialists", json={"texts": texts}), 400)
    binary = client.post("/api/specialists", json={"texts": "\0\0"})
    assert "holds zero bytes" in refusal(binary, 400)
    for path in ("/api/specialists/0123456789abcdef", "/api/specialists/..%2f..%2ftoken.zip"):
        assert client.get(path).status_code == 404
    body = {"id": "0123456789abcdef", "prompt": "a"}
    assert "no specialist '0123456789abcdef'" in refusal(client.post("/api/generate", json=body), 404)


def test_a_full_queue_says_when_to_come_again(strict, monkeypatch):
    """One is computed, one waits, the third is refused; the two are answered."""
    begun, go = threading.Event(), threading.Event()

    def slow(self, texts, check):
        begun.set()
        assert go.wait(20)
        return {"texts": list(texts)}

    monkeypatch.setattr(Specialists, "make", slow)
    queue = strict.app.state.queue
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(strict.post, "/api/specialists", json={"texts": "1"})
        assert begun.wait(20)
        second = pool.submit(strict.post, "/api/specialists", json={"texts": "2"})
        deadline = time.monotonic() + 20
        while queue.waiting < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        third = strict.post("/api/specialists", json={"texts": "3"})
        assert "Try again in" in refusal(third, 503) and int(third.headers["retry-after"]) >= 1
        assert strict.get("/v1/models").status_code == strict.get("/healthz").status_code == 200
        go.set()
        assert [one.result().json() for one in (first, second)] == [{"texts": ["1"]}, {"texts": ["2"]}]
    assert strict.post("/api/specialists", json={"texts": "4"}).status_code == 200 and queue.waiting == 0


def test_late_and_abandoned_jobs_end():
    async def scenario():
        queue = ComputeQueue(max_waiting=3, seconds=0.2)
        computed = []

        def endless(job):
            try:
                while True:
                    job.check()
                    time.sleep(0.01)
            finally:
                time.sleep(0.05)  # beyond the time of the job that came next

        def brief(job):
            computed.append(job)

        late = await asyncio.gather(queue.call(endless), queue.call(brief), return_exceptions=True)
        assert [error.status for error in late] == [504, 504] and not computed
        assert "No answer within 0.2 seconds" in str(late[0])
        await queue.call(brief)
        assert len(computed) == 1 and queue.waiting == 0
        job = queue.enter()
        running = asyncio.create_task(queue.run(job, lambda: endless(job)))
        await asyncio.sleep(0.05)
        queue.leave(job)
        with pytest.raises(Refused, match="given up"):
            await running
        queue.close()
        with pytest.raises(Refused, match="stopping"):
            queue.enter()

    asyncio.run(scenario())


def test_making_ends_soon_after_its_time_is_over(soup):
    """Looked at before the texts are placed, before the model is put together and before each measurement."""
    specialists = Specialists(soup)
    looked, allowed = 0, float("inf")

    def check():
        nonlocal looked
        looked += 1
        if looked > allowed:
            raise Refused(504, "late")

    assert specialists.make(sentences("football", 11), check)["losses"]
    in_all, kept = looked, dict(specialists._models)
    assert in_all > 4 + 2 * 5  # either half of the texts under five shares
    for allowed in (0, 1, 2, in_all // 2, in_all - 1):
        looked = 0
        with pytest.raises(Refused, match="late"):
            specialists.make(sentences("football", 11), check)
        assert looked == allowed + 1 and specialists._models == kept


def test_a_body_that_does_not_arrive_is_given_up():
    async def nobody(*_):
        raise AssertionError("the application was asked")

    async def receive():
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    guard = Guard(nobody, access=Access(TOKEN), limits=Limits(body_seconds=0.1))
    headers = {"host": "127.0.0.1:8300", "content-length": "10", "authorization": BEARER["Authorization"]}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/api/specialists", "headers": encoded}
    asyncio.run(asyncio.wait_for(guard(scope, receive, send), 20))
    assert sent[0]["status"] == 408 and b"did not arrive within 0.1 seconds" in sent[1]["body"]
