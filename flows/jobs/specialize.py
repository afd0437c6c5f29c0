"""The specialise job: texts → domain weights → stand-alone models, and what was gained.

    python -m flows.jobs.specialize --config '{"soup": "soup", "texts": {"notes": "/data/notes"}, "output": "mine"}'

Every specialist is a Hugging Face directory under SOE_HOME/specialists/<output>/<name>. With
`evaluation_passages`, losses of the specialists, of the soup's own generic instance and of a generic twin go
to <output>/evaluation.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from flows.jobs import runner
from flows.jobs.progress import progress
from flows.settings import Specialize
from pipeline.corpora import BadDocument, open_corpus, read_documents
from pipeline.cutting import cut_passages
from pipeline.domain_weights import estimate_domain_weights
from pipeline.embedder import find_embedder, load_embedder
from pipeline.embedding import embed_texts
from pipeline.specialist_sets import SpecialistSet, generic_evaluation, held_out_sets
from pipeline.tasks import available_cores
from pipeline.tokenizer import load_tokenizer
from soe_model.evaluation import mean_loss
from soe_model.soup import SoupOfExperts
from soe_model.specialization import write_specialists
from storage_schema.layout import soup_folder, specialist_folder, store_folder
from storage_schema.lock import only_writer
from storage_schema.manifest import content_digest, read_manifest, write_atomically
from storage_schema.tree import Tree

MADE = "made.json"
"""What the folder of specialists holds and from what: the same request again is a skip."""


def run(settings: Specialize) -> dict[str, Any]:
    """Make the specialists; returns their folders and, if asked for, the losses.

    Raises:
        ValueError: no texts, a soup that does not verify, or a target that holds another specialist.
    """
    runner.require_workers(1, settings.use_gpu)
    soup = SoupOfExperts.open(soup_folder(settings.soup))
    sets = read_sets(settings)
    output = specialist_folder(settings.output)
    identity = _identity(settings, soup, sets)
    finished = _finished(output, sets, identity)
    if finished is not None and not settings.rebuild:
        print(f"{output} is finished; nothing to make.", flush=True)
        return {"output": str(output), **finished}
    # In a Ray task, so that the dashboard shows the work where it is done, on a GPU if asked for.
    task = ray.remote(num_cpus=1, num_gpus=1 if settings.use_gpu else 0)(_specialize)
    with only_writer(output):
        report = ray.get(task.remote(settings, soup.folder, sets, output))
        write_atomically(output / MADE, json.dumps({"identity": identity, "report": report}, indent=1))
    return {"output": str(output), **report}


def _identity(settings: Specialize, soup: SoupOfExperts, sets: list[SpecialistSet]) -> str:
    """Digest of all that decides the specialists and their losses."""
    twin = settings.compare_with and read_manifest(soup_folder(settings.compare_with), "soup").digest
    return content_digest(
        {
            "soup": soup.digest,
            "twin": twin,
            "rule": settings.rule,
            "held_out_of": settings.held_out_of,
            "sets": [
                [made.name, content_digest(made.texts), content_digest(made.evaluation)] for made in sets
            ],
        }
    )


def _finished(output: Path, sets: list[SpecialistSet], identity: str) -> dict[str, Any] | None:
    """The report of an earlier run of the same specialists, if they are all still there."""
    try:
        made = json.loads((output / MADE).read_text("utf-8"))
        for one in sets:
            read_manifest(output / one.name, "specialist")
    except (OSError, ValueError):
        return None
    return made["report"] if made["identity"] == identity else None


def read_sets(settings: Specialize) -> list[SpecialistSet]:
    """The specialist sets the settings name: files of texts, and the held-out sources of a store.

    Raises:
        ValueError: a set without texts, or no set at all.
    """
    sets = [_read_set(name, path, settings) for name, path in settings.texts.items()]
    if settings.held_out_of is not None:
        sets += held_out_sets(
            store_folder(settings.held_out_of),
            max_texts=settings.max_texts,
            evaluation_passages=settings.evaluation_passages,
            max_sets=settings.max_sets,
        )
    if not sets:
        raise ValueError(
            'no specialist set: name files of texts, such as texts={"notes": "/data/notes"}, or a store '
            "with held-out sources (held_out_of)."
        )
    return sets


def _read_set(name: str, path: str, settings: Specialize) -> SpecialistSet:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise ValueError(f"{name!r} cannot name a specialist; use letters, digits, '_', '-' and '.'.")
    corpus = open_corpus(path)
    passages: list[str] = []
    for file in corpus.files:
        for document in read_documents(corpus, file):
            if isinstance(document, BadDocument):
                raise ValueError(f"specialist set {name}: {document.where}: {document.problem}")
            passages += [text for text in cut_passages(document.text, 2000) if text.strip()]
    needed = settings.evaluation_passages
    if len(passages) <= needed:
        raise ValueError(
            f"specialist set {name} has {len(passages)} passages; it needs at least one, and {needed} more to "
            "evaluate on. Give more text, or lower evaluation_passages."
        )
    return SpecialistSet(
        name=name, texts=passages[needed:][: settings.max_texts], evaluation=passages[:needed]
    )


def _specialize(
    settings: Specialize, folder: Path, sets: list[SpecialistSet], output: Path
) -> dict[str, Any]:
    """The work itself, in a Ray task."""
    torch.set_num_threads(available_cores())  # Ray gives a task one thread a logical CPU it asked for
    soup = SoupOfExperts.open(folder, verify=False)
    weights_WK = _domain_weights(settings, soup, sets)
    with progress("make specialists", "models") as report:
        report(0, len(sets))
        write_specialists(
            soup,
            [output / made.name for made in sets],
            weights_WK,
            recipes=[{"rule": settings.rule, "num_texts": len(made.texts)} for made in sets],
            rebuild=settings.rebuild,
        )
        report(len(sets), len(sets))
    if not settings.evaluation_passages:
        return {"specialists": [made.name for made in sets]}
    losses = _evaluate(settings, soup, sets, weights_WK)
    write_atomically(output / "evaluation.json", json.dumps(losses, indent=1))
    return losses


def _domain_weights(settings: Specialize, soup: SoupOfExperts, sets: list[SpecialistSet]) -> torch.Tensor:
    """Algorithm 3 for every set, [W, K], with the embedder the soup's domains were made with."""
    tree = Tree.read(soup.folder / "tree.arrow")
    embedder = read_manifest(soup.folder, "soup").configuration["embedder"]
    model = load_embedder(
        find_embedder(embedder["embedder"], embedder["revision"]),
        max_seq_length=embedder["max_seq_length"],
        device="cuda" if settings.use_gpu else "cpu",
    )
    rows = []
    with progress("embed specialist texts", "sets") as report:
        for number, made in enumerate(sets):
            report(number, len(sets))
            rows.append(estimate_domain_weights(embed_texts(model, made.texts), tree, rule=settings.rule))
        report(len(sets), len(sets))
    return torch.from_numpy(np.stack(rows)).float()


def _evaluate(
    settings: Specialize, soup: SoupOfExperts, sets: list[SpecialistSet], weights_WK: torch.Tensor
) -> dict[str, Any]:
    """Losses on text that neither trained a model nor chose its weights (nats per token)."""
    tokenizer = load_tokenizer(soup.folder / "tokenizer.json")
    length = read_manifest(soup.folder, "soup").configuration["training"]["sequence_length"]
    store = store_folder(settings.held_out_of) if settings.held_out_of else None
    generic_K = Tree.read(soup.folder / "tree.arrow").generic_weights
    weights_WK = torch.cat([weights_WK, torch.from_numpy(generic_K).float()[None]])
    windows = [torch.from_numpy(tokenizer.encode_windows(made.evaluation, length)) for made in sets]
    generic = (
        generic_evaluation(store, passages=4 * settings.evaluation_passages) if store is not None else []
    )
    generic_windows = torch.from_numpy(tokenizer.encode_windows(generic, length))
    if len(generic_windows):
        windows.append(generic_windows)
    instances_WP = soup.instances(soup.coefficients(weights_WK))
    twin = _twin(settings)
    rows = []
    with progress("evaluate", "sets") as report:
        for number, some in enumerate(windows):
            report(number, len(windows))
            row = {"soup_loss": mean_loss(soup.model(instances_WP[number]), some)}
            row["soup_generic_instance_loss"] = mean_loss(soup.model(instances_WP[-1]), some)
            if twin is not None:
                row["generic_loss"] = mean_loss(twin, some)
            rows.append(row)
        report(len(windows), len(windows))
    described = [
        {"name": made.name, "unseen_source": made.unseen_source, "passages": len(made.evaluation), **row}
        for made, row in zip(sets, rows, strict=False)
    ]
    losses: dict[str, Any] = {"specialist_sets": described}
    if len(generic_windows):
        losses["generic_mixture"] = {"passages": len(generic), **rows[-1]}
    return losses


def _twin(settings: Specialize) -> torch.nn.Module | None:
    """The generic twin's model: a soup without experts, so any domain weights give it."""
    if settings.compare_with is None:
        return None
    twin = SoupOfExperts.open(soup_folder(settings.compare_with))
    return twin.specialist(torch.zeros(twin.config.num_domains))


if __name__ == "__main__":
    runner.main(Specialize, run)
