"""`soe serve`: who may ask, how much, and right answers; a real process, OpenAI's client, a browser."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch
from fastapi.testclient import TestClient

from flows.processes import free_port
from flows.serving.access import Access, read_token
from flows.serving.app import create_app
from flows.serving.command import listen
from flows.serving.compute_queue import ComputeQueue
from flows.serving.generation import TextStream
from flows.serving.limits import Limits, Refused
from flows.serving.recipe_box import RecipeBox
from flows.serving.specialists import Specialists
from pipeline.tokenizer import load_tokenizer
from soe_model.recipe import instance_of, read_recipe
from soe_model.soup import SoupOfExperts
from soe_model.specialization import materialize
from tests.extras import chromium, screenshot
from tests.served_soup import POSITIONS, TOPICS, make_served_soup, sentences

TOKEN = "a-token-of-the-tests-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
CLIENTS = 32


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A SOE_HOME with one soup, `topics`."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOE_HOME", str(folder))
        make_served_soup(folder / "soups" / "topics")
        yield folder


@pytest.fixture(scope="module")
def soup(home):
    return SoupOfExperts.open(home / "soups" / "topics")


@pytest.fixture(scope="module")
def specialists(soup):
    return Specialists(soup, cache=2)


@pytest.fixture(scope="module")
def client(specialists):
    """The application in this process, asked with the token."""
    with ask(specialists) as client:
        client.headers.update(BEARER)
        yield client


def ask(specialists, **options) -> TestClient:
    app = create_app(specialists, Access(TOKEN), **options)
    return TestClient(app, base_url="http://127.0.0.1:8300", raise_server_exceptions=False)


def stranger(client: TestClient) -> TestClient:
    """One that knows no token. Not entered: its end would be the application's."""
    return TestClient(client.app, base_url=client.base_url)


@pytest.fixture(scope="module")
def made(client):
    """A specialist for cooking and a little law."""
    texts = [*sentences("cooking", 12), *sentences("law", 4)]
    answer = client.post("/api/specialists", json={"texts": texts})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer, status: int) -> str:
    """The message of an error that has this status and OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


# Who may ask.


def test_the_token_is_made_once_and_nobody_else_can_read_it(tmp_path):
    file = tmp_path / "new" / "token"
    token = read_token(file)
    assert len(token) >= 40 and read_token(file) == token and file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    with pytest.raises(ValueError, match="can be read by others. Run: chmod 600"):
        read_token(file)
    file.chmod(0o600)
    file.write_text("short\n")
    with pytest.raises(ValueError, match="holds no token.*16 ASCII characters"):
        read_token(file)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/api/soup", "/api/specialists", "/docs", "/openapi.json", "/nowhere"]
)
def test_nothing_is_told_without_the_token(client, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = stranger(client).get(path, headers=headers)
        assert "oken" in refusal(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


def test_without_a_token_the_service_says_only_that_it_is_well(client):
    web = stranger(client)
    assert web.get("/healthz").json() == {"status": "ok"}
    page = web.get("/")
    assert page.status_code == 401 and "soe serve" in page.text and "topics" not in page.text
    assert web.get("/?token=wrong").status_code == 401 and not web.cookies


def test_the_page_gives_a_cookie_for_the_token(client):
    browser = stranger(client)
    answer = browser.get("/", params={"token": TOKEN})
    assert answer.status_code == 200 and TOKEN not in answer.text
    said = answer.headers["set-cookie"].lower()
    assert "httponly" in said and "samesite=strict" in said and TOKEN not in said
    assert browser.get("/").status_code == browser.get("/api/soup").status_code == 200
    assert browser.get("/v1/models").status_code == 401
    foreign = {"Origin": "http://127.0.0.1:9999"}
    answer = browser.post("/api/specialists", json={"texts": "a"}, headers=foreign)
    assert "other origins" in refusal(answer, 403)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8300", "localhost.evil.example", ""]
)
def test_a_name_that_is_not_ours_is_refused(client, host):
    for path in ("/healthz", "/", "/v1/models"):
        assert "Host header" in refusal(client.get(path, headers={"Host": host}), 421)


def test_the_names_we_answer_to():
    here = Access(TOKEN)
    assert all(map(here.is_our_name, ("127.0.0.1:8300", "LOCALHOST", "[::1]:1", "localhost:80")))
    named = Access(TOKEN, host="box.lan")
    assert named.is_our_name("box.lan:8300") and not here.is_our_name("box.lan:8300")
    everywhere = Access(TOKEN, host="0.0.0.0")
    assert everywhere.is_our_name("10.1.2.3:8300") and not everywhere.is_our_name("evil.example")
    assert not here.is_our_name("10.1.2.3:8300")


def test_only_our_own_scripts_may_run(client):
    page = client.get("/", params={"token": TOKEN})
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert not re.findall(r"<script(?! src=)|\son\w+=|style=|https?://", page.text)
    assert client.get("/v1/models").headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in client.get("/api/soup", headers={"Origin": "null"}).headers
    assert "--accent:" in client.get("/static/page.css").text
    assert client.get("/static/../app.py").status_code == 404


# How much may be asked.


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


def test_unusable_texts_are_refused(client):
    for texts in ([], "", [" \n"]):
        assert "There is no text" in refusal(client.post("/api/specialists", json={"texts": texts}), 400)
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
            while True:
                job.check()
                time.sleep(0.01)

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


# What is answered.


def test_where_texts_fall_and_what_the_specialist_is_worth(made, client):
    assert [row["domain"] for row in made["domains"]] == [0, 3]
    assert sum(row["weight"] for row in made["domains"]) == pytest.approx(1) and made["texts"]["count"] == 13
    assert made["domains"][0]["words"][0] == "cooking" and len(made["position"]) == 2
    assert made["losses"].keys() >= {"made", "generic_instance", "windows"} and not made["no_losses_because"]
    assert any("Only 13 texts" in warning for warning in made["warnings"])
    few = client.post("/api/specialists", json={"texts": sentences("music", 9)}).json()
    assert few["losses"] is None and "Fewer than 10 passages" in few["no_losses_because"]
    assert [row["domain"] for row in few["domains"]] == [7]
    far = client.post("/api/specialists", json={"texts": "zxqv 0x7f 0x3a ; ; ; {{{ }}} %%% 8812 4471"}).json()
    assert any("far from every domain" in warning for warning in far["warnings"])
    listed = client.get("/api/specialists").json()
    assert {made["id"], few["id"], far["id"]} <= {one["id"] for one in listed["specialists"]}
    assert client.get(f"/api/specialists/{made['id']}").json() == made


def test_the_same_texts_give_the_same_specialist_in_any_order_of_requests(made, client):
    client.post("/api/specialists", json={"texts": sentences("sailing", 3)})
    again = client.post("/api/specialists", json={"texts": [*sentences("cooking", 12), *sentences("law", 4)]})
    assert again.json() == made


def test_a_recipe_is_enough_to_make_the_model_again(made, soup, home, tmp_path):
    file = tmp_path / "specialist.json"
    file.write_text(json.dumps(made["recipe"]))
    kept = home / "served" / "topics" / f"{made['id']}.json"
    assert json.loads(kept.read_text()) == made["recipe"]
    manifest = materialize(read_recipe(file), soup, tmp_path / "again")
    assert manifest.counts["tensors"] == made["recipe"]["counts"]["tensors"]


def test_models_are_kept_up_to_the_bound_and_made_again_alike(made, client, specialists):
    others = [client.post("/api/specialists", json={"texts": sentences(t, 3)}).json()["id"] for t in TOPICS]
    assert made["id"] not in specialists._models and len(specialists._models) == 2
    model = specialists.model(others[0])
    assert specialists.model(others[0]) is model and len(specialists._models) == 2
    expected = instance_of(specialists.box.recipe(made["id"]), specialists.soup)
    found = torch.nn.utils.parameters_to_vector(specialists.model(made["id"]).parameters())
    assert torch.equal(found.sort().values, expected.sort().values)


def test_recipes_outlast_the_service_and_stay_with_their_soup(made, soup, home):
    again = Specialists(soup)
    assert made["id"] in dict(again.box.ids()) and again.describe(made["id"]) == made
    other = RecipeBox("0" * 64, "topics")
    assert not other.ids()
    with pytest.raises(Refused, match="There is no specialist"):
        other.recipe(made["id"])


def test_the_zip_is_a_model_that_writes_the_same(made, client, home, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answer = client.get(f"/api/specialists/{made['id']}.zip")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / f"specialist-{made['id']}"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = "simmer the onion"
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        wrote = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    both = client.post("/api/generate", json={"id": made["id"], "prompt": prompt, "max_tokens": 20}).json()
    assert both["specialist"]["text"] == tokenizer.decode(wrote, skip_special_tokens=True)
    assert both["generic"]["text"] != both["specialist"]["text"]
    assert not list((home / "served" / "topics").glob(".work-*"))


@pytest.mark.parametrize("stop", [(), (" 日",), ("zzz", "😀 b"), ("n",)])
def test_streamed_pieces_are_whole_and_never_show_a_stop(soup, stop):
    tokenizer = load_tokenizer(soup.folder / "tokenizer.json")
    text = "naïve — 日本 😀😀 bé end"
    pieces: list[str] = []
    stream = TextStream(tokenizer, stop, pieces.append)
    for token in tokenizer.tokenizer.encode(text).ids:
        stream.feed(token)
    stream.finish()
    expected = min((text.partition(one)[0] for one in stop), key=len, default=text)
    assert "".join(pieces) == stream.text == expected
    assert all("\ufffd" not in piece for piece in pieces) and (stop or len(pieces) > 5)


# A real process.


class Service:
    """`soe serve topics`, as one starts it."""

    def __init__(self, home: Path):
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "serve", "topics", "--port", str(self.port)],
            env=os.environ | {"SOE_HOME": str(home), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""
        self.drained = threading.Thread(target=self._listen, daemon=True)
        self.drained.start()
        deadline = time.monotonic() + 90
        while "Ctrl-C" not in self.said and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        self.page = re.search(r"http://\S+token=(\S+)", self.said)
        assert self.page, self.said
        self.url, self.token = f"http://127.0.0.1:{self.port}", self.page[1]

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said += line

    def openai(self, **options) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": self.token, "max_retries": 0} | options
        )


@pytest.fixture(scope="module")
def service(home):
    service = Service(home)
    yield service
    service.process.send_signal(signal.SIGTERM)
    service.drained.join(60)
    assert service.said.endswith("Stopped.\n") and service.process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.url)


@pytest.fixture(scope="module")
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

    def answer(number: int) -> str:
        ask = {"model": served[number], "max_tokens": 12, "temperature": 1.0, "seed": 5}
        client = service.openai(timeout=60)
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


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture()
def opened(browser, service):
    """Opens the page as the terminal says; at the end it must have asked nobody else, and complained of nothing."""
    pages, problems, asked = [], [], []

    def open_(**options):
        page = browser.new_context(accept_downloads=True, **options).new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(service.page[0])
        page.wait_for_selector("body[data-ready]")
        pages.append(page)
        return page

    open_.problems = problems
    yield open_
    for page in pages:
        page.context.close()
    assert not problems and all(url.startswith((service.url, "data:", "blob:")) for url in asked), problems


def paste_and_make(page) -> None:
    page.fill("#texts", "\n\n".join([*sentences("cooking", 9), *sentences("law", 5)]))
    page.get_by_role("button", name="Make a specialist").click()
    page.wait_for_selector("#result:not([hidden])", timeout=15_000)


def test_the_page_from_texts_to_a_model(opened, tmp_path):
    page = opened(viewport=LAPTOP)
    assert "token" not in page.url and page.title() == "Specialists of topics"
    assert "8 experts · 8 domains" in page.inner_text("#summary") and page.locator("#map circle").count() == 8
    page.get_by_role("button", name="Make a specialist").click()
    assert "There is no text yet" in page.inner_text("#make-error")
    paste_and_make(page)
    assert page.locator("#make-error").is_hidden() and "Only 12 texts" in page.inner_text("#warnings")
    rows = page.locator("#h tr").all_inner_texts()
    assert [row.split()[1] for row in rows] == ["cooking", "law"]
    assert page.locator("#map circle.weight").count() == 2
    shares = [float(value) for value in page.locator("#losses .value").all_inner_texts()]
    assert len(shares) == 2 and all(1 < loss < 12 for loss in shares)
    gain = shares[1] - shares[0]
    assert f"{abs(gain):.2f}"[:3] in page.inner_text("#verdict") and "nats per token" in page.inner_text(
        "#verdict"
    )
    page.fill("#prompt", "<b>simmer</b> the")
    page.fill("#tokens", "20")
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector("#written:not([hidden])")
    for half in ("#by-specialist", "#by-generic"):
        text = page.inner_text(half)
        assert text.startswith("<b>simmer</b> the") and len(text) > 22
    assert page.locator("#written b").count() == 0
    page.fill("#prompt", "the " * 70)
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector("#write-error:not([hidden])")
    assert "64 positions" in page.inner_text("#write-error")
    assert "400" in opened.problems.pop()  # Chromium reports what we asked for
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the model").click()
    download.value.save_as(tmp_path / "model.zip")
    assert any(
        name.endswith("model.safetensors") for name in zipfile.ZipFile(tmp_path / "model.zip").namelist()
    )
    recipe = json.loads(page.locator("#recipe").text_content())
    assert recipe["kind"] == "specialist" and len(recipe["configuration"]["coefficients"]) == 8
    screenshot(page, "laptop", full_page=True)


def test_the_page_reads_files_and_is_used_with_the_keyboard(opened):
    page = opened(viewport=LAPTOP)
    notes = "\n".join(sentences("astronomy"))
    page.set_input_files("#files", [
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": notes.encode()},
        {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\x00\x01"},
    ])  # fmt: skip
    page.wait_for_selector("#file-list button")
    assert "photo.jpg is not a text file" in page.inner_text("#make-error")
    assert "1 text" in page.inner_text("#count")
    page.locator("#make-button").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])", timeout=15_000)
    assert "astronomy" in page.inner_text("#h") and "none could be kept apart" in page.inner_text("#verdict")
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#map-said").startswith("Domain 1: astronomy") and "h 1.000" in page.inner_text(
        "#map-said"
    )
    page.wait_for_function("() => document.querySelectorAll('#made button')[0]?.ariaCurrent === 'true'")
    page.locator("#made button").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('#made button')[1].ariaCurrent === 'true'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(opened, scheme):
    page = opened(viewport=PHONE, color_scheme=scheme, has_touch=True)
    screenshot(page, f"phone-empty-{scheme}", full_page=True)
    paste_and_make(page)
    page.locator("#map circle.weight").last.tap()
    assert "h 0." in page.inner_text("#map-said")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    texts, result = page.locator("#texts").bounding_box(), page.locator("#losses").bounding_box()
    made = page.locator("#made").bounding_box()
    assert texts["y"] < result["y"] < made["y"]
    screenshot(page, f"phone-{scheme}", full_page=True)
