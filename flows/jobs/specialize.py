"""The specialise job: texts → domain weights → stand-alone models, and what was gained.

    python -m flows.jobs.specialize --config '{"soup": "soup", "texts": {"notes": "/data/notes"}, "output": "mine"}'

Every specialist is a Hugging Face directory under SOE_HOME/specialists/<output>/<name>. <output>/evaluation.json holds
its losses beside those of the generic instance, and of a generic twin if one is named. `soe specialize` does the same
without a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from flows.cluster import session
from flows.jobs import runner
from flows.reporting.progress import progress
from flows.settings import Specialize
from flows.specialists.maker import SpecialistMaker
from flows.specialists.methods import BY_LEARNING, method_of, with_method
from flows.specialists.soups import soup_to_read
from flows.specialists.twin import check_twin, open_twin
from pipeline.cores import available_cores, compute_on
from pipeline.specialists.held_out import generic_evaluation, held_out_sets
from pipeline.specialists.sets import SpecialistSet, check_names, set_of_texts
from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.evaluation import mean_loss
from soe_model.specialists.gain import gain_line
from soe_model.specialists.specialist_files import check_target, write_specialist
from storage_schema.errors import UserError
from storage_schema.json_files import as_object, read_object
from storage_schema.layout import MADE, specialist_folder, store_folder
from storage_schema.lock import only_writer
from storage_schema.manifest import Manifest, content_digest, read_manifest, verify_files, write_atomically

EVALUATION = "evaluation.json"
HELD_OUT_EVALUATION = 20


def run(settings: Specialize) -> dict[str, Any]:
    """Make the specialists on a Ray cluster; returns their folders and the losses.

    Raises:
        ValueError: no texts, a soup that does not verify, or a target that holds another specialist.
    """
    session.require_workers(1, settings.use_gpu)
    # In a Ray task, so that it can have a GPU and the dashboard shows it.
    task = ray.remote(num_cpus=1, num_gpus=1 if settings.use_gpu else 0)(make)
    return run_here(settings, lambda *arguments: ray.get(task.remote(*arguments)))


def run_here(
    settings: Specialize, make_elsewhere: Callable[..., Any] | None = None, *, together: bool = True
) -> dict[str, Any]:
    """As :func:`run`, in this process or wherever `make_elsewhere` calls :func:`make`.

    `together`: the folder holds these specialists and no others, and the report is written there.
    """
    method_of(settings)  # refuse impossible settings before anything is read
    soup = SoupOfExperts.open(soup_to_read(settings.soup))
    settings = with_method(settings, soup)
    check_twin(settings, soup)
    sets = read_sets(settings)
    output = specialist_folder(settings.output)
    for one in sets:
        check_target(output / one.name)
    if not together:  # the caller shows the manifest, which has the notes
        return (make_elsewhere or make)(settings, soup.folder, sets, output)
    identity = _identity(settings, soup, sets)
    finished = _finished(output, sets, identity)
    notes = {one.name: one.notes for one in sets if one.notes}
    for name, said in notes.items():
        print(f"{name}: {' '.join(said)}", flush=True)
    if finished is not None and not settings.rebuild:
        print(f"{output} is finished; nothing to make.", flush=True)
        return {"output": str(output), **finished}
    with only_writer(output):
        report = (make_elsewhere or make)(settings, soup.folder, sets, output) | {"notes": notes}
        if "specialist_sets" in report:
            write_atomically(output / EVALUATION, json.dumps(report, indent=1))
        else:
            (output / EVALUATION).unlink(missing_ok=True)  # it was of earlier specialists
        for said in report["gains"], report["warnings"]:
            for name, line in said.items():
                print(f"{name}: {line}", flush=True)
        digests = {one.name: read_manifest(output / one.name, "specialist").digest for one in sets}
        made = {"identity": identity, "digests": digests, "report": report}
        write_atomically(output / MADE, json.dumps(made, indent=1))
    return {"output": str(output), **report}


def read_sets(settings: Specialize) -> list[SpecialistSet]:
    """The specialist sets the settings name: files of texts, and the held-out sources of a store.

    Raises:
        ValueError: a set without texts, no set at all, or two of the same name.
    """
    wanted = settings.evaluation_passages
    sets = [
        set_of_texts(
            name,
            path,
            max_texts=settings.max_texts,
            evaluation_passages=wanted,
            text_field=settings.text_field,
            source_field=settings.source_field,
        )
        for name, path in settings.texts.items()
    ]
    if settings.held_out_of is not None:
        sets += held_out_sets(
            store_folder(settings.held_out_of),
            max_texts=settings.max_texts,
            evaluation_passages=HELD_OUT_EVALUATION if wanted is None else wanted,
            max_sets=settings.max_sets,
        )
    if not sets:
        raise UserError(
            'no specialist set: name files of texts, such as texts={"notes": "/data/notes"}, or a store '
            "with held-out sources (held_out_of)."
        )
    check_names(sets)
    return sets


def make(settings: Specialize, folder: Path, sets: list[SpecialistSet], output: Path) -> dict[str, Any]:
    """Make the specialists of the sets and write them to `output`; returns the report on each."""
    compute_on(available_cores())  # Ray gives a task one thread per logical CPU that it asked for
    soup = SoupOfExperts.open(folder, verify=False)
    maker = SpecialistMaker(soup, device="cuda" if settings.use_gpu else "cpu")
    twin = open_twin(settings)
    rows, gains, left = [], {}, iter(sets)
    # Run the iterator to its end, where it reports that it has finished.
    for made in maker.make(sets, method_of(settings), twin=twin):
        one = next(left)
        manifest = write_specialist(
            soup,
            output / one.name,
            made.recipe,
            made.instance_P,
            report=made.report,
            replace=settings.rebuild,
        )
        rows.append(_row(one, manifest))
        gains[one.name] = gain_line(manifest.configuration, manifest.counts)
        del made  # before the next is put together
    report: dict[str, Any] = {
        "specialists": [one.name for one in sets],
        "gains": gains,
        "warnings": {row["name"]: row["warnings"] for row in rows if row["warnings"]},
    }
    if any(one.evaluation for one in sets):
        report["specialist_sets"] = rows
        if settings.held_out_of is not None:
            report |= _generic_mixture(settings, settings.held_out_of, maker, twin)
    return report


def _row(one: SpecialistSet, manifest: Manifest) -> dict[str, Any]:
    """One row of the evaluation; losses are in nats per token."""
    counts = manifest.counts
    losses = counts.get("losses", {})
    row = {"name": one.name, "unseen_source": one.unseen_source, "passages": len(one.evaluation)}
    names = {
        "made": "soup_loss",
        "generic_instance": "soup_generic_instance_loss",
        "nearest_domain": "nearest_domain_loss",
        "nearest_centroids": "nearest_centroids_loss",
        "twin": "generic_loss",
    }
    row |= {name: losses[key] for key, name in names.items() if key in losses}
    intervals = {"gain_interval": "gain", "nearest_centroids_interval": "nearest_centroids_loss"}
    for key, name in intervals.items():
        if key in losses:
            row[f"{name}_low"], row[f"{name}_high"] = losses[key]
    row |= {key: counts["texts"][key] for key in ("count", "domains", "entropy")}
    if "blend" in manifest.configuration:
        row["share"] = manifest.configuration["blend"]["share"]
    if "refined" in manifest.configuration:
        row["refining_steps"] = manifest.configuration["refined"]["steps"]
    return row | {"warnings": " ".join(counts["texts"].get("warnings", []))}


def _generic_mixture(settings: Specialize, store: str, maker: SpecialistMaker, twin: Any) -> dict[str, Any]:
    """Losses on the mixture of all domains, held out."""
    wanted = HELD_OUT_EVALUATION if settings.evaluation_passages is None else settings.evaluation_passages
    texts = generic_evaluation(store_folder(store), passages=4 * wanted)
    windows_nL1 = maker.meter.windows(texts)
    if not len(windows_nL1):
        return {}
    with progress("evaluate", "mixtures") as report:
        generic = maker.meter.losses(maker.meter.generic_N[None], windows_nL1).mean().item()
        found = {"passages": len(texts), "soup_loss": generic, "soup_generic_instance_loss": generic}
        if twin is not None:
            found["generic_loss"] = mean_loss(twin, windows_nL1)
        report(1, 1)
    return {"generic_mixture": found}


def _identity(settings: Specialize, soup: SoupOfExperts, sets: list[SpecialistSet]) -> str:
    """Digest of everything that decides the specialists and their losses."""
    twin = settings.compare_with and read_manifest(soup_to_read(settings.compare_with), "soup").digest
    decides = (
        "method", "rule", "held_out_of", "learning_steps", "learning_rate", "replay_store", "replay_share",
    )  # fmt: skip
    return content_digest(
        {
            "soup": soup.digest,
            "twin": twin,
            "settings": {name: getattr(settings, name) for name in (*decides, "bootstrap")},
            "sets": [
                [made.name, content_digest(made.texts), content_digest(made.evaluation)] for made in sets
            ],
        }
        # In earlier releases learning stopped by the same documents.
        | ({"stopping": [made.documents for made in sets]} if settings.method in BY_LEARNING else {})
    )


def _finished(output: Path, sets: list[SpecialistSet], identity: str) -> dict[str, Any] | None:
    """The report of an earlier run that made the same specialists, if all of them are still there and undamaged."""
    try:
        made = read_object(output / MADE)
        if made["identity"] != identity:
            return None
        for one in sets:
            manifest = read_manifest(output / one.name, "specialist")
            verify_files(output / one.name, manifest)
            if manifest.digest != made["digests"][one.name]:
                return None
        return as_object(made["report"], output / MADE)
    except (OSError, ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    runner.main(Specialize, run)
