"""Errors that end a pretraining run for good. They are recorded in its folder, so that Ray does not retry.

Ray Train restarts a failed group of workers. That helps when a machine was lost, or a store did not answer for a
while. It does not help when the loss is NaN, the model does not fit in memory or a checkpoint is of other data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flows.errors import causes, user_error
from storage_schema.errors import UserError
from storage_schema.manifest import UnavailableError, write_atomically

_STOPPED = "stopped.txt"
DOMAINS_NAMED = 8
"""Domains of a mixture that a message names, the heaviest first."""
_SAYS_OUT_OF_MEMORY = "out of memory", "can't allocate memory", "not enough memory", "running low on memory"


def stop(folder: Path, message: str) -> None:
    """Record that the run in `folder` cannot go on, and why."""
    write_atomically(folder / _STOPPED, message)


def stopped(folder: Path) -> str | None:
    """Why the run cannot go on; None if it can."""
    path = folder / _STOPPED
    return path.read_text("utf-8") if path.exists() else None


def forget(folder: Path) -> None:
    """The user starts again: what stopped the last attempt may have been mended."""
    (folder / _STOPPED).unlink(missing_ok=True)


def not_finite(step: int, mixtures: list[int], domain_weights_WK: np.ndarray, said: str) -> str:
    """The message for a loss or gradient that is not finite, with the domains it came from.

    Args:
        mixtures: those of the step whose own loss or gradient is not finite; empty: only their sum is not,
            or the generic instance's.
    """
    named = "; ".join(f"mixture {w} of domains {_domains(domain_weights_WK[w])}" for w in mixtures)
    texts = ", or look at the texts of these domains" if mixtures else ""
    return (
        f"the training has diverged: {said} At step {step}: {named or 'no mixture alone'}. No "
        "checkpoint was written since. Lower the learning rates (learning_rate, expert_learning_rate, "
        f"router_learning_rate) under another name{texts}."
    )


def _domains(weights_K: np.ndarray) -> str:
    heaviest = np.argsort(-weights_K, kind="stable")[:DOMAINS_NAMED]
    named = ", ".join(f"{k} ({weights_K[k]:.3g})" for k in heaviest if weights_K[k] > 0)
    more = int((weights_K > 0).sum()) - DOMAINS_NAMED
    return f"{named} and {more} more" if more > 0 else named


def out_of_memory(asked: str) -> str:
    """The message for a worker that ran out of memory. `asked`: what it was to hold."""
    return (
        f"a training worker ran out of memory with {asked}. What helps: a smaller micro_batch_size (the result is the "
        "same), an optimizer of fewer bytes, more workers (the bank is split over them), fewer experts. "
        "`soe plan` says what each of them needs."
    )


def fatal(error: BaseException, *, asked: str) -> str | None:
    """Why the run cannot go on after this error of a worker; None if it may, from the newest checkpoint.

    Only our own UserErrors count. A library's error may not come again: when one rank dies, torch raises ValueErrors on
    all the others.
    """
    if is_out_of_memory(error):
        return out_of_memory(asked)
    found = [one for one in causes(error) if isinstance(one, UserError)]
    if not found or any(isinstance(one, UnavailableError) for one in found):
        return None
    return user_error(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that Ray wrapped in it, says that memory ran out."""
    return any(
        type(raised).__name__ == "OutOfMemoryError"  # torch's and Ray's
        or isinstance(raised, MemoryError)
        or (_may_say_so(raised) and any(sign in str(raised).lower() for sign in _SAYS_OUT_OF_MEMORY))
        for raised in causes(error)
    )


def _may_say_so(error: BaseException) -> bool:
    """PyTorch's CPU allocator raises a plain RuntimeError; Ray's killer leaves the death of an actor."""
    return isinstance(error, RuntimeError) or type(error).__module__.startswith("ray.exceptions")


def to_the_end(fit: Callable[[], object], folder: Path, *, asked: str) -> None:
    """Run `fit`; raise ValueError with the reason if the run was stopped for good.

    Args:
        asked: what a worker was to hold; for a worker that was killed before it could report.
    """
    forget(folder)
    try:
        fit()
    except Exception as error:
        if (message := stopped(folder)) is None and is_out_of_memory(error):
            message = out_of_memory(asked)
        if message is None:
            raise
        raise UserError(message) from error
    if (message := stopped(folder)) is not None:
        raise UserError(message)
