"""The compare-methods job: a store → every method on the same stream, tokens and model, and a page on which to choose.

    python -m flows.jobs.compare_methods --config '{"store": "mine", "name": "which"}'

The folder SOE_HOME/comparisons/<name> holds the sets, the trained runs, a result for each cell (a method with one
seed), results.json and comparison.html. The same command goes on where an earlier one was cut off.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flows.cluster import session
from flows.comparison import plan
from flows.comparison.after_training import multiple_choice
from flows.comparison.after_training.specialized import with_specialized
from flows.comparison.cells import run_cells
from flows.comparison.contenders import Contender, contenders, step_tokens
from flows.comparison.further import Question, follows_weights
from flows.comparison.measuring import FINISHED
from flows.comparison.place import Place
from flows.comparison.pretrainings import Pretraining, pretrainings
from flows.comparison.read_sets import KIND as SETS
from flows.comparison.read_sets import with_documents, write_sets
from flows.comparison.report import by_number, by_size, choices, few_texts, surface
from flows.comparison.report.compared import Compared
from flows.comparison.report.figures import figures
from flows.comparison.report.page import write_page
from flows.comparison.report.results import collect
from flows.comparison.sets import MeasuredSet, load_sets, targets
from flows.jobs import runner
from flows.settings import CompareMethods
from flows.training.run_record import claim_run, claimed
from pipeline.remote.store import open_store
from soe_model.presets import preset
from storage_schema.domains import DomainStore
from storage_schema.layout import COMPARISON_PAGE, COMPARISON_RESULTS, comparison_folder, store_folder
from storage_schema.lock import only_writer
from storage_schema.manifest import write_atomically
from storage_schema.stage import open_stage

MAY_CHANGE = {
    "name", "store", "size", "methods", "options", "seeds", "mixtures", "cores_per_cell", "checkpoint_seconds",
    "fine_tune_tokens", "multiple_choice", "multiple_choice_tasks",
}  # fmt: skip
"""Settings that a later run in the same folder may change: methods, seeds and mixtures join those that are there, and
other numbers of tokens are fine-tuned on without another pretraining."""
OF_PRESET = "preset."


def run(settings: CompareMethods) -> dict[str, Any]:
    """Compare the methods on a Ray cluster; returns the folder, the page and the answer in words.

    Raises:
        ValueError: no store, no set, a method that is not there or that the sizes do not allow, or a budget in which
            no method learns.
    """
    chosen = settings.of_size()
    steps = plan.steps_of_tokens(chosen)
    folder = comparison_folder(chosen.name)
    begun = claimed(folder)
    store = open_store(str(store_folder(chosen.store)), num_volumes=begun.get("store_parts"))
    # Refuse what cannot be before anything is read.
    made = contenders(chosen, store, seed=0, steps=begun.get("steps", steps))
    surface.check(settings.mixtures or 0, made)
    session.require_workers(1, use_gpu=False, cores=chosen.cores_per_cell, lower="cores_per_cell")
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        sets, sets_digest = _sets(chosen, store, folder)
        asked = _asked(chosen, store, sets, made)
        questions = _questions(chosen, store, made)
        place = Place(
            folder=folder,
            store_place=str(store.folder.parent),
            store_parts=len(store.volumes),
            sets=sets,
            sets_digest=sets_digest,
            points=int(chosen.points or 1),
            checkpoint_seconds=chosen.checkpoint_seconds,
            cores=chosen.cores_per_cell,
            questions=asked,
            fine_tune_tokens=tuple(sorted(set(chosen.fine_tune_tokens or ()))),
        )
        facts = _facts(chosen, store)
        if begun:  # first: planning opens the trainings, and with other settings that removes unfinished ones
            claim_run(folder, _known(facts, begun))
        steps, todo, seconds = plan.planned(
            chosen, place, lambda steps: _todo(chosen, store, place, steps), begun.get("steps"), steps
        )
        if not begun:
            claim_run(folder, facts | {"steps": steps})
        if place.is_left_to_tune(todo):  # which stops by other documents
            place = replace(place, sets=with_documents(chosen, store, sets))
        cells = run_cells(place, todo, seconds)
        shown = with_specialized(place, chosen, todo, cells)
        report = collect(chosen, sets, shown, tokens=steps * step_tokens(chosen), digest=store.digest)
        if questions is not None:
            answers = multiple_choice.all_answers(place, questions, todo, cells)
            report["multiple_choice"] = choices.collect(questions.tasks, answers)
        _complete(report, chosen, store, place, cells)
        write_atomically(folder / COMPARISON_RESULTS, json.dumps(report, indent=1, allow_nan=False))
        write_page(folder / COMPARISON_PAGE, report)
    for line in report["answer"]:
        print(line, flush=True)
    return {
        "folder": str(folder),
        "page": str(folder / COMPARISON_PAGE),
        "answer": report["answer"],
        "cells": len(cells),
        "finished": sum(cell["status"] == FINISHED for cell in cells),
    }


def _facts(chosen: CompareMethods, store: DomainStore) -> dict[str, Any]:
    """What all runs of a comparison share. A preset is named, so its numbers stand beside the name."""
    numbers = preset(str(chosen.preset)).described()
    of_training = {f"training.{name}": value for name, value in numbers.pop("training").items()}
    return (
        chosen.model_dump(mode="json", exclude=MAY_CHANGE)
        | {"store_parts": len(store.volumes), "store_digest": store.digest}
        | {f"{OF_PRESET}{name}": value for name, value in (numbers | of_training).items()}
    )


def _known(facts: dict[str, Any], begun: dict[str, Any]) -> dict[str, Any]:
    """Without the preset's numbers for a comparison that was begun before they were kept."""
    kept = any(name.startswith(OF_PRESET) for name in begun)
    return {name: value for name, value in facts.items() if kept or not name.startswith(OF_PRESET)}


def _asked(
    chosen: CompareMethods, store: DomainStore, sets: list[MeasuredSet], made: list[Contender]
) -> dict[str, Question]:
    """What is asked of the methods whose models follow the domain weights, besides the losses of the sets."""
    if not any(follows_weights(one.method) for one in made):
        return {}
    asked = {
        few_texts.TEXTS: few_texts.question(sets),
        by_number.AT_ONCE: by_number.question_at_once(sets),
        surface.SURFACE: surface.question(chosen, store, sets) if chosen.mixtures else None,
    }
    return {name: question for name, question in asked.items() if question is not None}


def _questions(
    chosen: CompareMethods, store: DomainStore, made: list[Contender]
) -> multiple_choice.Asked | None:
    """What is asked in multiple choice; says so where the harness is missing."""
    if chosen.multiple_choice is None:
        return None
    if not multiple_choice.is_there():
        print(multiple_choice.LACKING, flush=True)
        return None
    return multiple_choice.asked(chosen, store, made[0].method.training.sequence_length)


def _complete(
    report: dict[str, Any],
    chosen: CompareMethods,
    store: DomainStore,
    place: Place,
    cells: list[dict[str, Any]],
) -> None:
    """Add the charts, the surface and the sentences on the paper's figures to the report; write the surface's files."""
    _add_charts(report, chosen, cells, place.sets)
    if surface.SURFACE in place.questions:
        asked = place.questions[surface.SURFACE]
        found = surface.collect_surface(cells, asked, place.sets, store.tree.leaves_KD)
        report["surface"] = found
        report["answer"].append(surface.answer(found))
        if found is not None:
            surface.write_tables(place.folder / surface.SURFACE, surface.mixtures_plan(chosen, store), found)
    surfaces, answers = report.get("surface"), report.get("multiple_choice")
    compared = Compared(settings=chosen, sets=place.sets, cells=cells, surface=surfaces, choices=answers)
    report["figures"] = figures(compared)


def _add_charts(
    report: dict[str, Any], chosen: CompareMethods, cells: list[dict[str, Any]], sets: list[MeasuredSet]
) -> None:
    """Add the charts by a number to the report, and a sentence for each."""
    report["by_number"] = {}
    if (found := few_texts.collect_few_texts(cells, sets)) is not None:
        report["by_number"][few_texts.TEXTS] = found
        report["answer"].append(few_texts.answer(found))
    if (found := by_number.collect_at_once(cells, sets)) is not None:
        report["by_number"][by_number.AT_ONCE] = found
        report["answer"].append(by_number.answer_at_once(found))
    of_options = by_number.collect_options(chosen, cells, sets)
    report["by_number"] |= of_options
    report["answer"] += map(by_number.answer_options, of_options.values())
    for name, of_size in (
        (by_size.SIZES, by_size.collect_sizes(chosen, cells, sets)),
        (by_size.EXPERTS, by_size.collect_experts(chosen, cells, sets)),
    ):
        if of_size is not None:
            report["by_number"][name] = of_size


def _sets(chosen: CompareMethods, store: DomainStore, folder: Path) -> tuple[list[MeasuredSet], str]:
    length = chosen.sequence_length or preset(str(chosen.preset)).training.sequence_length
    names = (
        "held_out", "texts", "text_field", "source_field", "max_texts", "evaluation_passages", "max_sets",
    )  # fmt: skip
    stage = open_stage(
        folder / "sets",
        kind=SETS,
        configuration={name: getattr(chosen, name) for name in names} | {"sequence_length": length},
        inputs={"domains": store.digest},
        rebuild=None,
    )
    if stage.finished is None:
        write_sets(stage, chosen, store, length=length)
    assert stage.finished is not None
    return load_sets(stage.folder), stage.finished.digest


def _todo(chosen: CompareMethods, store: DomainStore, place: Place, steps: int) -> list[Pretraining]:
    targets_WK = torch.stack([one.weights_K for one in targets(place.sets)])
    todo = []
    for seed in chosen.seeds or []:
        made = contenders(chosen, store, seed=seed, steps=steps)
        todo += pretrainings(made, targets_WK, seed=seed, store=store.digest)
        if asked := place.questions.get(surface.SURFACE):
            todo += surface.trainings(chosen, store, asked, seed=seed, steps=steps)
    return todo


if __name__ == "__main__":
    runner.main(CompareMethods, run)
