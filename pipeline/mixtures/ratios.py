"""``ratios.csv``: the mixtures of a run as a table, written, and read again as a meta-distribution.

The table has one row per mixture. The column ``run`` holds its name (the step, or ``step.mixture`` if a step has
several mixtures), and columns such as ``domain_0042`` hold the weight of each domain that occurs. Olmix and other
mixture regressions read this format. Weights are written so that reading gives the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.mixtures.meta_distributions import Fixed, Given
from pipeline.mixtures.plan import MixturePlan, Steps
from pipeline.mixtures.supports import SUM_TOLERANCE, Domains
from storage_schema.errors import UserError
from storage_schema.manifest import file_digest, write_atomically

RUN = "run"
RUN_ID, UNREAD = "run_id", ("name", "index")
"""Olmix's other name for the column ``run``, and columns of its tables that do not describe the mixture."""
_DOMAIN = re.compile(r"domain_([0-9]{1,18})")
_HEAD = re.compile(rb'(\xef\xbb\xbf)?"?(run|name|index|domain_[0-9])')
_STEPS_AT_ONCE = 256


def write_ratios(plan: MixturePlan, start: int, stop: int, path: str | Path) -> None:
    """Write the mixtures of the steps [start, stop) of a plan. Raises ValueError if there are no such steps."""
    if not 0 <= start < stop:
        raise UserError(
            f"there are no steps from {start} to {stop}: begin at 0 or later, and end beyond that."
        )
    occurring = np.zeros(plan.num_domains, bool)
    for steps in _some(plan, start, stop):
        occurring[steps.support_TWs[steps.weights_TWs > 0]] = True
    columns = np.flatnonzero(occurring)
    header = ",".join([RUN, *columns_of(columns)])
    rows = (row for steps in _some(plan, start, stop) for row in _rows(steps, plan, columns))
    write_atomically(path, (f"{line}\n" for line in chain([header], rows)))


def write_fixed(domain_weights_K: np.ndarray, path: str | Path, *, run: str) -> None:
    """Write one mixture as a table of one row, named `run`."""
    columns = np.flatnonzero(domain_weights_K)
    header = [RUN, *columns_of(columns)]
    weights = [repr(float(weight)) for weight in domain_weights_K[columns]]
    write_atomically(path, f"{','.join(header)}\n{','.join([run, *weights])}\n")


def read_ratios(path: str | Path) -> Given:
    """The mixtures of a table, in the order of its rows: the first row is mixture 0.

    Raises ValueError as :func:`read_table` does, and for a row that is not a distribution.
    """
    runs, domains, weights_Rk = read_table(path)
    with np.errstate(invalid="ignore"):
        wrong_Rk = ~(weights_Rk >= 0) | np.isinf(weights_Rk)
    off_R = np.abs(weights_Rk.sum(1) - 1) > SUM_TOLERANCE
    for row in np.flatnonzero(wrong_Rk.any(1) | off_R)[:1]:
        where = f"{path}, row {row + 1}{'' if runs[row] is None else f' (run {runs[row]})'}"
        for column in np.flatnonzero(wrong_Rk[row])[:1]:
            raise UserError(
                f"{where}: domain {domains[column]} has weight {weights_Rk[row, column]}; weights are from 0 to 1."
            )
        raise UserError(
            f"{where}: the weights sum to {weights_Rk[row].sum():.9g}, not to 1. Divide them by their sum."
        )
    return Given(_Rows(domains, weights_Rk, str(path)), name=file_digest(path))


def read_fixed(path: str | Path, num_domains: int) -> Fixed:
    """The single mixture of a table, for every step.

    Raises ValueError as :func:`read_table` does, and if the table does not have exactly one row.
    """
    runs, domains, weights_Rk = read_table(path)
    if len(runs) != 1:
        raise UserError(
            f"{path} holds {len(runs)} mixtures; a fixed one is one row. Keep the row that you want."
        )
    return Fixed(spread(domains, weights_Rk, num_domains, path=path, whose="the store")[0], name=str(path))


def columns_of(domains: np.ndarray) -> list[str]:
    """The column names of these domains."""
    return [f"domain_{domain:04d}" for domain in domains]


def spread(
    domains: np.ndarray, weights_Rk: np.ndarray, num_domains: int, *, path: str | Path, whose: str
) -> np.ndarray:
    """A table's weights over all domains, float64 [R, K]. Raises ValueError for a domain number that is too large.

    Args:
        whose: what has `num_domains` domains, in the words of the error.
    """
    if domains.max() >= num_domains:
        raise UserError(f"{path} names domain {domains.max()}; {whose} has {num_domains} domains.")
    weights_RK = np.zeros((len(weights_Rk), num_domains))
    weights_RK[:, domains] = weights_Rk
    return weights_RK


def read_table(path: str | Path) -> tuple[list[str | None], np.ndarray, np.ndarray]:
    """Read the runs' names [R], the domains that have a column [k], and the weights float64 [R, k] (NaN if empty).

    The names come from the column ``run``, else from ``run_id``, else they are the rows' numbers. They may be equal,
    and they are None if the table has only a column ``name``. The columns ``name`` and ``index`` are not read.

    Raises:
        ValueError: this is not such a table. The caller must check that the weights are distributions.
    """
    try:
        # Given a name instead of a file, polars would also fetch URLs, unpack archives and expand patterns.
        with open(path, "rb") as file:
            if not _HEAD.match(file.read(16)):
                raise UserError(
                    f"{path} is no table of mixtures: its first line must begin with a column's name."
                )
            file.seek(0)
            table = pl.read_csv(file, infer_schema=False)  # else a column that begins with 0 becomes integers
        names = [name for name in table.columns if _DOMAIN.fullmatch(name)]
        weights = table.select(pl.col(names).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} is no table of mixtures: {' '.join(str(error).split())[:200]}") from error
    other = sorted(set(table.columns) - {RUN, RUN_ID, *UNREAD, *names})
    if other or not names or not len(table):
        raise UserError(
            f"{path} is no table of mixtures: it must have a column {RUN!r} or {RUN_ID!r}, columns domain_0042 "
            f"and so on, and a row for each mixture; it has {len(table)} rows and {other or table.columns} besides."
        )
    named = next((column for column in (RUN, RUN_ID) if column in table.columns), None)
    # A column of names that is not read must not be replaced silently: rows are numbered only if there are no names.
    numbers = [None if UNREAD[0] in table.columns else str(row) for row in range(len(table))]
    runs = table[named].to_list() if named else numbers
    domains = [int(name.removeprefix("domain_")) for name in names]
    if len(set(domains)) < len(domains) or max(domains) >= 1 << 31:
        raise UserError(
            f"{path} has two columns of one domain, or a domain beyond {1 << 31}: {max(domains)!r:.40}."
        )
    return runs, np.array(domains), weights


class _Rows:
    """Mixture number → the domains and weights of that row. It travels with the plan, so zeros are left out."""

    def __init__(self, domains: np.ndarray, weights: np.ndarray, path: str):
        rows, columns = np.nonzero(weights)
        self.domains, self.weights = domains[columns].astype(np.int32), weights[rows, columns]
        self.path = path
        self.ends = np.searchsorted(rows, np.arange(len(weights)), side="right")

    def check(self, domains: Domains) -> None:
        """Raise ValueError if a domain with weight is not among these, or has no window."""
        windows_K = np.pad(
            domains.windows_K, (0, max(0, int(self.domains.max()) + 1 - len(domains.windows_K)))
        )
        for at in np.flatnonzero(windows_K[self.domains] == 0)[:1]:
            row = int(np.searchsorted(self.ends, at, side="right"))
            raise UserError(
                f"{self.path}, row {row + 1}: domain {self.domains[at]} has weight {self.weights[at]:g} but no whole "
                f"window at this sequence length (there are {len(domains.windows_K)} domains). Leave it out, or use "
                "shorter sequences."
            )

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number >= len(self.ends):
            raise UserError(
                f"{self.path} holds {len(self.ends)} mixtures; there is no mixture {number}. Train fewer steps, or "
                "give more rows."
            )
        of_row = slice(self.ends[number - 1] if number else 0, self.ends[number])
        return self.domains[of_row], self.weights[of_row]


def _some(plan: MixturePlan, start: int, stop: int) -> Iterator[Steps]:
    """The steps [start, stop) in groups, without their slots."""
    for first in range(start, stop, _STEPS_AT_ONCE):
        yield plan.steps(first, min(first + _STEPS_AT_ONCE, stop), slice(0))


def _rows(steps: Steps, plan: MixturePlan, occurring: np.ndarray) -> Iterator[str]:
    for step in range(steps.start, steps.start + len(steps.support_TWs)):
        dense_WK = steps.domain_weights(step, plan.num_domains)
        for w, weights_K in enumerate(dense_WK):
            name = f"{step}" if len(dense_WK) == 1 else f"{step}.{w}"
            cells = ["0"] * len(occurring)
            for column in np.flatnonzero(weights_K[occurring]).tolist():
                cells[column] = repr(float(weights_K[occurring[column]]))
            yield ",".join([name, *cells])
