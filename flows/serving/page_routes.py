"""What the page asks for: the soup and its domains, specialists made of texts, two texts side by side, a zip."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from starlette.background import BackgroundTask

from flows.serving.compute_queue import ComputeQueue, Job
from flows.serving.generation import Sampling, complete, prompt_ids
from flows.serving.limits import too_many, whole_unicode
from flows.serving.specialist_cache import GENERIC, Specialists

Answer = TypeVar("Answer")
Text = Annotated[str, AfterValidator(whole_unicode)]
LISTED = 50
LOOK_SECONDS = 0.5
"""How often we look whether a client has gone."""


class Texts(BaseModel):
    """A request for a specialist."""

    model_config = ConfigDict(extra="forbid", strict=True)
    texts: list[Text]

    @field_validator("texts", mode="before")
    @classmethod
    def _one_or_several(cls, texts: Any) -> Any:
        return [texts] if isinstance(texts, str) else texts


class Prompt(BaseModel):
    """A request for two texts: the specialist's and the generic instance's."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: str
    prompt: Text
    max_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int | None = Field(0, ge=0, lt=2**63)


async def while_wanted(request: Request, queue: ComputeQueue, compute: Callable[[Job], Answer]) -> Answer:
    """Let the queue call `compute`, and give that up if the client goes away first."""
    job = queue.enter()

    async def look() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(LOOK_SECONDS)
        job.abandon()

    looking = asyncio.create_task(look())
    try:
        return await queue.run(job, lambda: compute(job))
    finally:
        looking.cancel()
        queue.leave(job)


def page_api(specialists: Specialists, queue: ComputeQueue) -> APIRouter:
    """The routes below ``/api``."""
    router, limits, about = APIRouter(prefix="/api"), specialists.limits, _about(specialists)

    @router.get("/soup")
    async def soup_() -> dict[str, Any]:
        return about

    @router.get("/specialists")
    async def list_() -> dict[str, Any]:
        ids = specialists.box.ids()
        return {"total": len(ids), "specialists": [_line(specialists, *row) for row in ids[:LISTED]]}

    @router.post("/specialists")
    async def make(request: Request, given: Texts) -> dict[str, Any]:
        too_many("texts", len(given.texts), limits.texts, param="texts")
        characters = sum(map(len, given.texts))
        too_many("characters in the texts", characters, limits.characters, param="texts")
        return await while_wanted(request, queue, lambda job: specialists.make(given.texts, job.check))

    @router.get("/specialists/{name}.zip")
    async def archive(request: Request, name: str) -> FileResponse:
        specialists.box.manifest(name)
        path: Path = await while_wanted(request, queue, lambda job: specialists.archive(name, job.check))
        return FileResponse(
            path,
            media_type="application/zip",
            filename=path.name,
            background=BackgroundTask(shutil.rmtree, path.parent, ignore_errors=True),
        )

    @router.get("/specialists/{name}")
    async def describe(name: str) -> dict[str, Any]:
        return specialists.describe(name)

    @router.post("/generate")
    async def generate(request: Request, given: Prompt) -> dict[str, Any]:
        too_many("max_tokens", given.max_tokens, limits.max_tokens, param="max_tokens")
        too_many("characters in the prompt", len(given.prompt), limits.prompt_characters, param="prompt")
        specialists.box.manifest(given.id)
        ids_1T = prompt_ids(
            specialists.tokenizer, given.prompt, positions=specialists.positions, max_tokens=given.max_tokens
        )
        sampling = Sampling(max_tokens=given.max_tokens, temperature=given.temperature, seed=given.seed)

        def compute(job: Job) -> dict[str, Any]:
            write = partial(complete, tokenizer=specialists.tokenizer, ids_1T=ids_1T, sampling=sampling)
            return {
                kind: asdict(write(specialists.model(name), check=job.check))
                for kind, name in (("specialist", given.id), ("generic", GENERIC))
            }

        return await while_wanted(request, queue, compute)

    return router


def _about(specialists: Specialists) -> dict[str, Any]:
    """The soup, its domains, and the limits of a request."""
    soup = specialists.soup
    return {
        "name": soup.folder.name,
        "digest": soup.digest,
        "experts": soup.config.num_experts,
        "parameters": soup.bank.num_params,
        "positions": specialists.positions,
        "domains": specialists.map.describe(),
        "limits": asdict(specialists.limits),
    }


def _line(specialists: Specialists, name: str, created: int) -> dict[str, Any]:
    """A specialist in the list: its id, when it was made, and the domain that most of its texts fall into."""
    manifest = specialists.box.manifest(name)
    fallen = specialists.fallen(manifest)
    heaviest = max(fallen, key=lambda domain: fallen[domain], default=None)
    words = [] if heaviest is None else specialists.map.words(heaviest)
    return {
        "id": name,
        "created": created,
        "texts": manifest.counts.get("texts", {}).get("count"),
        "domain": heaviest,
        "words": words,
    }
