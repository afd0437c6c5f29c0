"""A soup's specialists as `specialize` makes them, after training: blended, and refined where that is its default.

The other rows have the domain weights of Algorithm 3, as the paper's figures do. These are models of the same bank and
of the same texts, measured on the same windows, at the end of training only.

<folder>/specialized/<method>-seed-<seed>/result.json   the losses, what was chosen, and how long it took

Legend: W sets, N experts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch

from flows.comparison.cells import failed
from flows.comparison.contenders import Contender
from flows.comparison.further import FURTHER, stage_of
from flows.comparison.measuring import FINISHED
from flows.comparison.place import RESULT, Place
from flows.comparison.pretrainings import Pretraining
from flows.comparison.read_sets import embedder_of, read_again
from flows.comparison.sets import GENERIC, MeasuredSet, targets
from flows.comparison.training import Training
from flows.reporting.progress import progress
from flows.settings import CompareMethods
from flows.specialists.blend import blended_weights
from flows.specialists.coefficients import Chosen, from_weights, refined
from flows.specialists.losses import LossMeter
from flows.specialists.methods import default_method
from pipeline.cores import compute_on
from pipeline.embeddings.build import embed_texts
from pipeline.specialists.domain_weights import Assignment, assign_to_domains
from pipeline.specialists.sets import SpecialistSet
from pipeline.tasks import run_tasks
from soe_model.files.soup import SoupOfExperts
from soe_model.files.write_soup import soup_of_trainer
from soe_model.methods.soup import Soup
from soe_model.specialists.blending import BLENDED
from soe_model.specialists.refining import REFINED
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.json_files import read_object
from storage_schema.manifest import write_atomically
from storage_schema.stage import Stage

KIND, FOLDER = "comparison-specialized", "specialized"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of the sets, and where they lie among the domains."""

    sets: list[SpecialistSet]
    assignments: list[Assignment]


def with_specialized(
    place: Place, settings: CompareMethods, trained: Sequence[Pretraining], cells: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The cells, those of each soup (variants aside) followed by cells of its specialists as `specialize` makes them.

    Made in Ray tasks; what is there already is read. What fails is a cell that says why, and is tried again by the next
    run.
    """
    finished = {(cell["method"], cell["seed"]) for cell in cells if cell["status"] == FINISHED}
    soups = {
        (contender.label, one.seed): (one, contender)
        for one in trained
        for contender in one.contenders
        if isinstance(contender.method, Soup) and not contender.variant
    }
    soups = {cell: soup for cell, soup in soups.items() if cell in finished}
    waiting = {cell: soup for cell, soup in soups.items() if _stage(place, *soup).finished is None}
    failures = dict(zip(waiting, _make(place, settings, [*waiting.values()]), strict=True))
    found = []
    for cell in cells:
        found.append(cell)
        label, seed = cell["method"], cell["seed"]
        if failure := failures.get((label, seed)):
            found.append(failure | {"method": _label(label, BLENDED)})
        elif soup := soups.get((label, seed)):
            found += _cells(cell, read_object(_stage(place, *soup).folder / RESULT))
    return found


def _make(
    place: Place, settings: CompareMethods, soups: Sequence[tuple[Pretraining, Contender]]
) -> list[dict[str, Any] | None]:
    """Of each soup None, or a cell that says what went wrong."""
    if not soups:
        return []
    try:
        texts = _texts(place, settings)
        with progress("make specialists", "soups") as report:
            tasks = [(place, texts, *soup) for soup in soups]
            return run_tasks(specialized, tasks, report=report, num_cpus=place.cores)
    except Exception as error:  # also of a worker that died
        left = [soup if _stage(place, *soup).finished is None else None for soup in soups]
        return [None if soup is None else failed(*soup, error) for soup in left]


def _stage(place: Place, pretraining: Pretraining, contender: Contender) -> Stage:
    return stage_of(place.folder / FOLDER, KIND, pretraining, contender, place.sets_digest, {})


def _texts(place: Place, settings: CompareMethods) -> Texts:
    store = place.store()
    sets, embedder = read_again(settings, store, targets(place.sets)), embedder_of(store)
    return Texts(sets=sets, assignments=[_placed(store, embedder, one.texts) for one in sets])


def _placed(store: DomainStore, embedder: Any, texts: Sequence[str]) -> Assignment:
    return assign_to_domains(embed_texts(embedder, texts), store.tree)


def specialized(
    place: Place, texts: Texts, pretraining: Pretraining, contender: Contender
) -> dict[str, Any] | None:
    """One task: the specialists of one soup, measured. Never raises; returns a cell that says what went wrong."""
    compute_on(place.cores)
    try:
        _specialize(place, texts, pretraining, contender)
    except Exception as error:
        return failed(pretraining, contender, error)
    return None


def _specialize(place: Place, texts: Texts, pretraining: Pretraining, contender: Contender) -> None:
    stage, store = _stage(place, pretraining, contender), place.store()
    training = Training(
        pretraining=pretraining,
        folder=place.training(pretraining).folder,
        store=store,
        points=place.points,
        domain_weights_RK=torch.stack([one.weights_K for one in place.sets]),
    )
    [run] = pretraining.runs
    trainer = training.at_the_end(run)
    assert isinstance(trainer, SoupTrainer)
    soup = soup_of_trainer(
        stage.scratch / "soup",
        trainer,
        tree=store.tree,
        tokenizer=store.folder.parent / "tokenizer" / "tokenizer.json",
        windows_K=store.windows_K(trainer.training.sequence_length),
    )
    found = _measured(soup, store, texts, targets(place.sets))
    write_atomically(stage.work / RESULT, json.dumps(found, indent=1, allow_nan=False))
    stage.finish({"sets": len(texts.sets)})


def _measured(
    soup: SoupOfExperts, store: DomainStore, texts: Texts, measured: Sequence[MeasuredSet]
) -> dict[str, Any]:
    """Way of making → ``losses`` (set → of each window), ``chosen`` (set → what its recipe says), ``seconds`` to
    a set's coefficients."""
    meter, names = LossMeter(soup), [one.name for one in measured]
    # A single text is measured by its halves, which are placed anew.
    embedder = embedder_of(store) if any(len(one.texts) == 1 for one in texts.sets) else None
    begun = time.perf_counter()
    place = partial(_placed, store, embedder)
    start = from_weights(soup, *blended_weights(meter, texts.sets, texts.assignments, place))
    seconds = time.perf_counter() - begun

    def ended(chosen: Chosen, seconds: float) -> dict[str, Any]:
        windows = {one.name: one.evaluation_nL1 for one in measured}
        rows = {name: [row] for row, name in enumerate(names)}
        of_sets = meter.losses_of_some(chosen.coefficients_WN, windows, rows)
        losses = {name: losses_1n[0].tolist() for name, losses_1n in of_sets.items()}
        said = dict(zip(names, chosen.said, strict=True))
        return {"losses": losses, "chosen": said, "seconds": seconds / len(names)}

    found = {BLENDED: ended(start, seconds)}
    if default_method(soup) == REFINED:
        begun = time.perf_counter()
        last = refined(meter, texts.sets, texts.assignments, start)
        found[REFINED] = ended(last, seconds + time.perf_counter() - begun)
    return found


def _cells(cell: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A cell for each way of making, with the soup's own losses on the generic mixture, whose model it is too."""
    of_training = {key: value for key, value in cell.items() if key not in (FURTHER, "fine_tuned")}
    last = cell["points"][-1]
    generic = {GENERIC: last["losses"][GENERIC]} if GENERIC in last["losses"] else {}
    for way, its in found.items():
        losses = {of_set: fmean(of_windows) for of_set, of_windows in its["losses"].items()}
        yield of_training | {
            "method": _label(cell["method"], way),
            "points": [last | {"losses": losses | generic}],
            "window_losses": its["losses"],
            "seconds_to_specialist": cell["seconds_to_specialist"] + its["seconds"],
            "cost": cell["cost"] | {"specialist_flops": None},  # not counted; the seconds are
            "chosen": its["chosen"],
        }


def _label(of_soup: str, way: str) -> str:
    name, colon, word = of_soup.partition(":")
    return f"{name}-{way}{colon}{word}"
