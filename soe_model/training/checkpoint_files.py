"""The files of a checkpoint: their names, and whether they are as they were written.

checkpoint.json                       step, world size, what the run must match, and a digest of all this
rank-00000-of-00002.safetensors       this rank's columns of the bank and its optimizer; rank 0 also what every
                                      rank holds whole
rank-00000-of-00002.json              bytes and sha256 of that file
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage_schema.json_files import read_object
from storage_schema.manifest import NOT_THERE, StoreError, content_digest, file_digest, unreadable
from storage_schema.versions import version_problem

STATE = "checkpoint.json"
_FIELDS = {"step": int, "world_size": int, "plan_digest": str, "notes": dict, "soup": dict, "training": dict}
MOST_RANKS = 99_999
"""The names of the files have room for no more."""


class DamagedCheckpoint(StoreError):
    """A file of the checkpoint is missing, truncated or altered; an earlier checkpoint may be whole."""


def rank_file(rank: int, world_size: int) -> str:
    """The name of one rank's tensors; their size and sha256 lie beside them as JSON."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def is_whole(folder: str | Path) -> bool:
    """Whether the file of every rank is there with the size it was written with; a load also checks its sha256.

    Raises StoreError for a checkpoint of another schema version and for one that cannot be read, which may be whole.
    """
    try:
        state = read_state(Path(folder))
        for rank in range(state["world_size"]):
            verify_file(Path(folder) / rank_file(rank, state["world_size"]), content=False)
    except DamagedCheckpoint:
        return False
    return True


def read_state(folder: Path) -> dict[str, Any]:
    """The content of checkpoint.json.

    Raises:
        DamagedCheckpoint: it is missing or was altered.
        StoreError: it is of another schema version, or this user may not read it.
        UnavailableError: the disk does not answer now.
    """
    path = folder / STATE
    state = _read_json(path)
    if problem := version_problem(path, state):
        raise StoreError(problem)
    if state.pop("digest", None) != content_digest(state):
        raise DamagedCheckpoint(f"{path} was altered: it no longer has the digest it was written with.")
    for name, kind in _FIELDS.items():
        if type(state.get(name)) is not kind:
            raise DamagedCheckpoint(
                f"{path} was altered: {name} is {state.get(name)!r:.40}, no {kind.__name__}."
            )
    if state["step"] < 0 or not 1 <= state["world_size"] <= MOST_RANKS:
        raise DamagedCheckpoint(
            f"{path} was altered: step {state['step']} of {state['world_size']} ranks; there are 1 to {MOST_RANKS}."
        )
    return state


def verify_file(path: Path, *, content: bool = True) -> None:
    """Raise DamagedCheckpoint unless the file is as it was written; without `content` only its size is checked."""
    entry = _read_json(path.with_suffix(".json"))
    try:
        there = path.stat().st_size
        if there != entry.get("bytes"):
            raise DamagedCheckpoint(f"{path} has {there} bytes; {entry.get('bytes')} were written.")
        altered = content and file_digest(path) != entry.get("sha256")
    except OSError as error:
        raise _not_read(path, error) from error
    if altered:
        raise DamagedCheckpoint(f"{path} was altered: its sha256 is not the one it was written with.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except OSError as error:
        raise _not_read(path, error) from error
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from error


def _not_read(path: Path, error: OSError) -> StoreError:
    """The error of a file: damage if it is not there, but not if the system does not let us read it."""
    if isinstance(error, NOT_THERE):
        return DamagedCheckpoint(f"{path} is missing: {error.strerror}.")
    return unreadable(path, error)
