"""Generate one completion with transformers, follow its text token by token, and end it at a stop sequence.

Legend: T tokens of a prompt.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flows.serving.limits import Refused
from pipeline.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLDEST = 1e-5
"""A temperature below it counts as 0: the logits divided by it would overflow."""
UNFINISHED = "\ufffd"
"""The decoder gives this for a character of which only the first bytes are there."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen."""

    max_tokens: int
    temperature: float = 0.0
    """At 0, or below ``COLDEST``: always the likeliest token."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    """The same seed gives the same text; None: another text each time."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The text that a model wrote after a prompt."""

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: str
    """``stop``: at the end of a text or at a stop sequence; ``length``: at `max_tokens`."""


class TextStream:
    """Turns token ids into text to show at once: whole characters, and nothing that may begin a stop sequence.

    Args:
        show: gets each new piece of text; the pieces together are :attr:`text`.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str], show: Callable[[str], None]):
        self._tokenizer, self._stop, self._show = tokenizer, tuple(filter(None, stop)), show
        self.ids: list[int] = []
        self.text = ""
        self.finished = False
        """Whether the end-of-text token or a stop sequence has come."""

    def feed(self, token: int) -> None:
        """Take the next token."""
        if self.finished:
            return
        if token == self._tokenizer.end_of_text:
            self.finish()
            return
        self.ids.append(token)
        decoded = self._decoded()
        if (end := self._stop_in(decoded)) is not None:
            self._show_until(decoded[:end])
            self.finished = True
            return
        decoded = decoded.rstrip(UNFINISHED)
        self._show_until(decoded[: len(decoded) - self._held_back(decoded)])

    def finish(self) -> None:
        """Say that no more tokens come; shows what was held back."""
        if not self.finished:
            self._show_until(self._decoded())
            self.finished = True

    def _decoded(self) -> str:
        return self._tokenizer.tokenizer.decode(self.ids, skip_special_tokens=False)

    def _stop_in(self, decoded: str) -> int | None:
        found = [at for stop in self._stop if (at := decoded.find(stop)) >= 0]
        return min(found, default=None)

    def _held_back(self, decoded: str) -> int:
        """How many characters at the end may be the beginning of a stop sequence."""
        lengths = [
            length
            for stop in self._stop
            for length in range(1, min(len(stop), len(decoded) + 1))
            if decoded.endswith(stop[:length])
        ]
        return max(lengths, default=0)

    def _show_until(self, text: str) -> None:
        new, self.text = text[len(self.text) :], text
        if new:
            self._show(new)


def prompt_ids(
    tokenizer: TextTokenizer, prompt: str, *, positions: int, max_tokens: int, param: str = "prompt"
) -> torch.Tensor:
    """The prompt as int64 [1, T]. An empty prompt becomes the end-of-text token, after which a passage begins.

    Raises :class:`Refused` (400) if the model has too few positions for prompt and completion.
    """
    ids = tokenizer.tokenizer.encode(prompt, add_special_tokens=False).ids or [tokenizer.end_of_text]
    if len(ids) + max_tokens > positions:
        room = positions - max_tokens
        way_out = (
            f"Shorten the prompt to {room} tokens, or lower max_tokens." if room > 0 else "Lower max_tokens."
        )
        raise Refused(
            400,
            f"The prompt has {len(ids)} tokens and max_tokens is {max_tokens}; the model has {positions} positions "
            f"for both. {way_out}",
            code="context_length_exceeded",
            param=param,
        )
    return torch.tensor([ids])


def positions_of(model: PreTrainedModel) -> int:
    """How many tokens the model can hold, prompt and completion together."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1024)


def complete(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    ids_1T: torch.Tensor,
    sampling: Sampling,
    *,
    show: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
) -> Completion:
    """Generate the text after the prompt. One thread at a time may call this: it sets the seed of all of torch.

    Args:
        show: gets the text piece by piece.
        check: called after every token; what it raises ends the generation.
    """
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    stream = TextStream(tokenizer, sampling.stop, show)

    class Follow(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            check()
            stream.feed(int(input_ids[0, -1]))
            return torch.tensor([stream.finished])

    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature >= COLDEST:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        torch.manual_seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)
    end = tokenizer.end_of_text
    check()
    with torch.no_grad():
        found_1T = model.generate(
            ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            generation_config=GenerationConfig(
                **how,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=end,
                pad_token_id=end,
                bos_token_id=end,
            ),
            stopping_criteria=StoppingCriteriaList([Follow()]),
        )
    reason = "stop" if stream.finished else "length"
    stream.finish()
    return Completion(
        text=stream.text,
        tokens=found_1T.shape[1] - ids_1T.shape[1],
        prompt_tokens=ids_1T.shape[1],
        finish_reason=reason,
    )
