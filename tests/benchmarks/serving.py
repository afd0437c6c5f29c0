"""What `soe serve` gives: specialists a second, time to the first token of a new recipe, latencies under many clients.

    python -m tests.benchmarks.serving [--soup NAME | --width D --layers N] [--requests N] [--json FILE]

A real service process on loopback; without --soup an untrained one is made, which is tiny unless told otherwise: its
figures are those of the service around the models more than of the models. Each answer under load is compared with
what the same request was answered when it was asked alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from flows.local_stack.processes import free_port
from flows.serving.access import read_token
from tests.served_soup import TOPICS, make_served_soup, sentences

CLIENTS = (1, 8, 32)
TOKENS = 16
SPECIALISTS = 24
TEXTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--soup", help="name or path; made, unless given")
    parser.add_argument("--width", type=int, default=32, help="embedding size of the soup that is made (32)")
    parser.add_argument("--layers", type=int, default=2, help="and its layers (2)")
    parser.add_argument("--requests", type=int, default=128, help="for each number of clients (128)")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soe-serving-") as folder:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        soup = arguments.soup
        if soup is None:
            os.environ["SOE_HOME"] = folder
            soup = "made"
            made = Path(folder) / "soups" / soup
            make_served_soup(made, width=arguments.width, layers=arguments.layers)
        found = {"soup": soup, "load_average_before": os.getloadavg()[0], **in_process(soup)}
        found |= over_http(soup, arguments.requests)
        found["load_average_after"] = os.getloadavg()[0]
    print(json.dumps(found, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


def in_process(name: str) -> dict[str, float]:
    """Specialists a second: embedding included (one by one, of `TEXTS` texts), and the instances alone."""
    from flows.specialists.maker import SpecialistMaker
    from flows.specialists.methods import NEAREST, Method
    from pipeline.specialists.sets import SpecialistSet
    from soe_model.files.soup import SoupOfExperts
    from storage_schema.layout import soup_folder

    soup = SoupOfExperts.open(soup_folder(name))
    maker = SpecialistMaker(soup)
    sets = [SpecialistSet(name=str(i), texts=texts_of(i), evaluation=[]) for i in range(SPECIALISTS)]
    maker.assign(sets[0].texts)
    began = time.perf_counter()
    made = [next(iter(maker.make([one], Method(name=NEAREST, bootstrap=0)))) for one in sets]
    with_embedding = time.perf_counter() - began
    began = time.perf_counter()
    for one in made:
        soup.model(soup.instances(one.recipe.coefficients_N[None])[0])
    return {
        "texts_a_specialist": TEXTS,
        "parameters": soup.bank.num_params,
        "specialists_a_second_with_embedding": round(SPECIALISTS / with_embedding, 2),
        "models_a_second_from_recipes": round(SPECIALISTS / (time.perf_counter() - began), 2),
    }


def over_http(name: str, requests: int) -> dict[str, Any]:
    """The same through a service process: specialists, first tokens, and completions of many clients at once."""
    process, url, token = start(name)
    options = {"base_url": url, "headers": {"Authorization": f"Bearer {token}"}, "timeout": 120}
    try:
        with httpx.Client(**options) as web:
            began, ids = time.perf_counter(), []
            for number in range(SPECIALISTS):
                answer = web.post("/api/specialists", json={"texts": texts_of(number)}).raise_for_status()
                ids.append(answer.json()["id"])
            made = time.perf_counter() - began
            firsts = [first_token(web, one) for one in ids]  # the last few are cached, the others are not
        found: dict[str, Any] = {
            "http_specialists_a_second": round(SPECIALISTS / made, 2),
            "first_token_of_an_uncached_recipe": percentiles(firsts[: -(SPECIALISTS // 4)]),
        }
        alone, _ = load(options, ids, 1, requests, expected=None)
        for clients in CLIENTS:
            _, found[f"{clients}_clients"] = load(options, ids, clients, requests, expected=alone)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    return found


def load(
    options: dict[str, Any], ids: list[str], clients: int, requests: int, *, expected: list[str | None] | None
) -> tuple[list[str | None], dict[str, Any]]:
    """The answers' texts (None: lost) and the latencies of completions of `TOKENS` tokens, each of another recipe and
    seed than the one before it; those with another text than `expected` are counted.
    """

    def one(number: int) -> tuple[float, str | None]:
        body = {"model": ids[number % len(ids)], "prompt": "the", "max_tokens": TOKENS, "seed": number}
        began = time.perf_counter()
        answer = web.post("/v1/completions", json=body)
        seconds = time.perf_counter() - began
        right = answer.status_code == 200 and answer.json()["model"] == body["model"]
        return seconds, answer.json()["choices"][0]["text"] if right else None

    limits = httpx.Limits(max_connections=clients)
    with httpx.Client(**options, limits=limits) as web, ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        rows = list(pool.map(one, range(requests)))
        seconds = time.perf_counter() - began
    texts = [text for _, text in rows]
    return texts, {
        "requests": requests,
        "lost": texts.count(None),
        "mixed_up": sum(
            text not in (None, wanted) for text, wanted in zip(texts, expected or texts, strict=True)
        ),
        "different_texts": len(set(texts)),
        "requests_a_second": round(requests / seconds, 2),
        "seconds": percentiles([row[0] for row in rows]),
    }


def first_token(web: httpx.Client, name: str) -> float:
    """Seconds from the request to the first piece of text."""
    body = {"model": name, "prompt": "the", "max_tokens": 4, "stream": True, "seed": 0}
    began = time.perf_counter()
    with web.stream("POST", "/v1/completions", json=body) as answer:
        times = [time.perf_counter() for line in answer.iter_lines() if line.startswith("data:")]
    return times[0] - began


def start(name: str) -> tuple[subprocess.Popen, str, str]:
    """A service on a free port; returns when it answers."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "flows.cli.main",
        "serve",
        name,
        "--port",
        str(port),
        "--max-queue",
        "64",
        "--method",  # of a soup that was not trained another model for other texts
        "nearest-centroids",
    ]
    log = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log.seek(0)
        if "Ctrl-C" in log.read():
            return process, f"http://127.0.0.1:{port}", read_token()
        time.sleep(0.2)
    log.seek(0)
    raise SystemExit(f"the service did not start: {log.read()}")


def texts_of(number: int) -> list[str]:
    """Texts of a mixture of two topics, another one for each number."""
    names = list(TOPICS)
    one, other = names[number % 8], names[(number + 1 + number // 8) % 8]
    share = 5 + number // 8
    return [*sentences(one, share), *sentences(other, TEXTS - share)]


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(seconds, q)), 4) for q in (50, 90, 99)}


if __name__ == "__main__":
    main()
