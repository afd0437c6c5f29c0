"""The part of OpenAI's API for models without a chat format: models and completions, streamed or whole."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.types import Receive, Scope, Send

from flows.serving.compute_queue import ComputeQueue, Job
from flows.serving.generation import Completion, Sampling, complete, prompt_ids
from flows.serving.limits import Limits, Refused, error_body, too_many
from flows.serving.page_routes import Text, while_wanted
from flows.serving.specialist_cache import GENERIC, Specialists

UNSUPPORTED: dict[str, tuple] = {
    "echo": (False, None),
    "logprobs": (None,),
    "best_of": (1, None),
    "suffix": ("", None),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": ({}, None),
}
"""Parameters of OpenAI's that we do not support → the values that are the same as leaving them out."""


class StreamOptions(BaseModel):
    """What a stream is asked to add."""

    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool = False


class Wanted(BaseModel):
    """A request for completions; defaults are OpenAI's."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    prompt: list[Text] = Field(default_factory=lambda: [""], min_length=1)
    max_tokens: int | None = Field(16, ge=1)
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1)
    stop: list[Text] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    echo: Any = None
    logprobs: Any = None
    best_of: Any = None
    suffix: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None

    @field_validator("prompt", "stop", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if isinstance(given, list) and any(not isinstance(one, str) for one in given):
            raise ValueError("it must be a string or a list of strings; token ids are not taken")
        return [given] if isinstance(given, str) else given

    def check(self, limits: Limits) -> None:
        """Raises :class:`Refused` if a parameter is not supported or beyond the limits."""
        for name, harmless in UNSUPPORTED.items():
            if getattr(self, name) not in harmless:
                raise Refused(400, f"{name} is not supported; leave it out.", code="unsupported", param=name)
        too_many("max_tokens", self.max_tokens or 16, limits.max_tokens, param="max_tokens")
        too_many("prompts", len(self.prompt), limits.prompts, param="prompt")
        longest = max(map(len, self.prompt))
        too_many("characters in a prompt", longest, limits.prompt_characters, param="prompt")
        too_many("completions", len(self.prompt) * (self.n or 1), limits.completions, param="n")
        too_many("stop sequences", len(self.stop or ()), limits.stops, param="stop")
        longest = max(map(len, self.stop or [""]))
        too_many("characters in a stop sequence", longest, limits.stop_characters, param="stop")

    def sampling(self, number: int) -> Sampling:
        """The sampling of completion `number` of a prompt. With a seed, each completion has its own seed."""
        return Sampling(
            max_tokens=self.max_tokens or 16,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            stop=tuple(self.stop or ()),
            seed=None if self.seed is None else (self.seed + number) % 2**63,
        )


class Answering:
    """The completions of one request: n for each prompt, in the prompts' order."""

    def __init__(self, wanted: Wanted, specialists: Specialists):
        wanted.check(specialists.limits)
        self.wanted, self.specialists = wanted, specialists
        if wanted.model != GENERIC:
            specialists.box.manifest(wanted.model)
        self.prompts: list[torch.Tensor] = [
            prompt_ids(
                specialists.tokenizer,
                prompt,
                positions=specialists.positions,
                max_tokens=wanted.max_tokens or 16,
            )
            for prompt in wanted.prompt
        ]
        self.head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": wanted.model,
        }

    def compute(
        self,
        job: Job,
        show: Callable[[int, str], None] = lambda index, text: None,
        ended: Callable[[int, Completion], None] = lambda index, completion: None,
    ) -> list[Completion]:
        """All completions; runs in the worker's thread. `show` and `ended` get the index of the completion."""
        found: list[Completion] = []
        model = self.specialists.model(self.wanted.model)
        for ids_1T in self.prompts:
            for number in range(self.wanted.n or 1):
                index = len(found)
                completion = complete(
                    model,
                    self.specialists.tokenizer,
                    ids_1T,
                    self.wanted.sampling(number),
                    show=partial(show, index),
                    check=job.check,
                )
                ended(index, completion)
                found.append(completion)
        return found

    def usage(self, found: list[Completion]) -> dict[str, int]:
        prompt = sum(ids_1T.shape[1] for ids_1T in self.prompts)
        written = sum(completion.tokens for completion in found)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def whole(self, found: list[Completion]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [_choice(i, one.text, one.finish_reason) for i, one in enumerate(found)]
        return {**self.head, "choices": choices, "usage": self.usage(found)}

    async def events(self, queue: ComputeQueue, job: Job) -> AsyncIterator[str]:
        """The answer as server-sent events. At its end, or when the client goes, the job leaves the queue."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def put(piece: dict[str, Any] | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def compute() -> list[Completion]:
            try:
                return self.compute(
                    job,
                    show=lambda index, text: put(_choice(index, text, None)),
                    ended=lambda index, one: put(_choice(index, "", one.finish_reason)),
                )
            finally:
                put(None)

        running = asyncio.create_task(queue.run(job, compute))
        running.add_done_callback(lambda _: pieces.put_nowait(None))  # also if it never began
        try:
            while (piece := await pieces.get()) is not None:
                yield _event({**self.head, "choices": [piece]})
            found = await running
            if self.wanted.stream_options is not None and self.wanted.stream_options.include_usage:
                yield _event({**self.head, "choices": [], "usage": self.usage(found)})
            yield "data: [DONE]\n\n"
        except Refused as refused:  # the answer has begun: its status can no longer change
            yield _event(refused.body())
        except Exception:
            yield _event(error_body(500, "The service failed; its terminal says how."))
            raise
        finally:
            queue.leave(job)
            running.cancel()


class _Stream(StreamingResponse):
    """A streamed answer. It takes its place in the queue before it begins, so that a refusal can have its status."""

    def __init__(self, answering: Answering, queue: ComputeQueue):
        self._queue, self._job = queue, queue.enter()
        super().__init__(answering.events(queue, self._job), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._queue.leave(self._job)  # also if the client goes before the first event


def completions_api(specialists: Specialists, queue: ComputeQueue) -> APIRouter:
    """The routes below ``/v1``."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        made = [_model(specialists, *row) for row in specialists.box.ids()]
        return {"object": "list", "data": [_model(specialists, GENERIC, 0), *made]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name == GENERIC:
            return _model(specialists, GENERIC, 0)
        specialists.box.manifest(name)
        return _model(specialists, name, int(specialists.box.made_at(name)))

    @router.post("/completions")
    async def completions(request: Request, wanted: Wanted) -> Response:
        answering = Answering(wanted, specialists)
        if wanted.stream:
            return _Stream(answering, queue)
        return JSONResponse(answering.whole(await while_wanted(request, queue, answering.compute)))

    @router.post("/chat/completions")
    async def chat() -> Response:
        message = "These models have no chat format. Use /v1/completions (client.completions.create)."
        return JSONResponse(error_body(400, message, code="unsupported"), 400)

    return router


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _model(specialists: Specialists, name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": specialists.soup.folder.name}
