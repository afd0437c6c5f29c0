"""Losses of many mixtures on texts, without training or writing a model: which mixture would suit them?

The result has the two tables that mixture regressions such as Olmix read: ``ratios.csv`` (one row per run, the weight
of each domain) and ``metrics.csv`` (the same runs, a loss for each set of texts). The runs' names join them.

Legend: R mixtures, K domains, N experts, k domains with a column.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch

from flows.reporting.progress import progress
from flows.specialists.losses import LossMeter
from flows.specialists.soups import soup_to_read
from pipeline.mixtures.ratios import RUN, RUN_ID, UNREAD, columns_of, read_table, spread
from pipeline.specialists.domain_weights import check_domain_weights
from pipeline.specialists.sets import set_of_texts
from soe_model.files.soup import SoupOfExperts
from storage_schema.errors import UserError
from storage_schema.manifest import StoreError, write_atomically

ROWS = 64
"""Mixtures of one progress step."""


def score_mixtures(
    soup: str,
    mixtures: str | Path,
    texts: Mapping[str, str],
    out: Path,
    *,
    max_texts: int = 200,
    **fields: str,
) -> pl.DataFrame:
    """Write ``ratios.csv`` and ``metrics.csv`` to `out`; returns the latter.

    Args:
        soup: name or path.
        mixtures: a ratios.csv, one row per mixture, as :func:`pipeline.mixtures.ratios.read_table` reads it.
        texts: name → file or folder.
        fields: ``text_field`` and ``source_field`` of the texts.

    Raises:
        ValueError: a table of something else, a row that is no distribution over the soup's domains, runs without a
            name of their own, texts without a window, or under a name that the tables' readers take for no loss.
        StoreError: `out` exists.
    """
    if out.exists():
        raise StoreError(f"{out} exists. Choose another folder, or remove it.")
    if taken := sorted({RUN, RUN_ID, *UNREAD} & texts.keys()):
        raise UserError(f"texts are named {taken[0]!r}, a column of the tables already. Choose another name.")
    opened = SoupOfExperts.open(soup_to_read(soup))
    ratios, weights_RK = _mixtures(mixtures, opened.config.num_domains)
    names = ratios[RUN].to_list()
    meter = LossMeter(opened)
    sets = {
        name: set_of_texts(name, path, max_texts=max_texts, evaluation_passages=0, **fields)
        for name, path in texts.items()
    }
    for name, one in sets.items():
        for note in one.notes:
            print(f"{name}: {note}", file=sys.stderr)
    windows = {name: meter.windows(one.texts) for name, one in sets.items()}
    coefficients_RN = opened.coefficients(torch.from_numpy(weights_RK).float())
    columns: dict[str, list[float]] = {name: [] for name in windows}
    with progress("score mixtures", "mixtures") as report:
        for first in range(0, len(names), ROWS):
            report(first, len(names))
            for name, of_set in meter.losses_of_sets(coefficients_RN[first : first + ROWS], windows).items():
                columns[name] += of_set.mean(1).tolist()
        report(len(names), len(names))
    table = pl.DataFrame({RUN: names, **columns})
    out.mkdir(parents=True)
    write_atomically(out / "ratios.csv", ratios.write_csv())
    write_atomically(out / "metrics.csv", table.write_csv())
    return table


def _mixtures(path: str | Path, num_domains: int) -> tuple[pl.DataFrame, np.ndarray]:
    """The table as it will be written, and the whole weights float64 [R, K]."""
    names, domains, weights_Rk = read_table(path)
    weights_RK = spread(domains, weights_Rk, num_domains, path=path, whose="the soup")
    nameless = [f"row {row} without a name" for row, name in enumerate(names) if name is None]
    twice = [f"{times} runs {name!r}" for name, times in Counter(names).most_common(1) if times > 1]
    for found in (nameless + twice)[:1]:
        raise UserError(
            f"{path} has {found}: names (column run or run_id) join a mixture and its losses. Give each run its own."
        )
    for name, row_K in zip(names, weights_RK, strict=True):
        try:
            check_domain_weights(row_K, num_domains)
        except ValueError as error:
            raise UserError(f"{path}, run {name}: {error}") from error
    columns = dict(zip(columns_of(domains), weights_Rk.T, strict=True))
    return pl.DataFrame({RUN: names, **columns}), weights_RK
