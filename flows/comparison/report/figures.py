"""Whether each figure of the paper came out here as it did there: one sentence for each, from losses by seed.

A sentence says "as in the paper" where all that the figure shows is sure here (seeds.py), or else what was found, or
why it was not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from flows.comparison.fine_tuning import LEARNING
from flows.comparison.further import FURTHER
from flows.comparison.report import by_number, by_size, choices, few_texts, surface
from flows.comparison.report.by_number import SOUP
from flows.comparison.report.compared import Compared
from flows.comparison.report.seeds import Claim, below
from flows.comparison.sets import GENERIC as GENERIC_SET
from flows.comparison.sets import targets

AS_THERE, NOT_HERE, AS_HOPED = "as in the paper", "not here", "as hoped"
SURFACE = "The surface, which the paper has not"
GENERIC, CRISP, EXPERTS, MERGE = "generic", "crisp", "domain-experts", "merged-linear"
ALMOST = 0.02
"""Nats per token: so far above generic's may the soup's loss on the generic mixture be."""
FEW_DOMAINS = 2
"""The paper's best on specialist sets."""
EQUAL_SIZE = 1.1
"""Soups of dense experts count as equally large up to so many times the parameters of one with low-rank experts."""


def figures(of: Compared) -> list[dict[str, str]]:
    """For each figure: ``figure``, ``verdict`` and ``said``, the sentence."""
    found = []
    for figure, (about, claims_of) in FIGURES.items():
        claims = claims_of(of)
        if isinstance(claims, str):
            verdict, why = NOT_HERE, f"because {claims}"
        elif all(claim.holds for claim in claims):
            verdict, why = AS_THERE, "; ".join(claim.said for claim in claims)
        else:
            said = "; ".join(claim.said for claim in claims if not claim.holds)
            verdict, why = NOT_HERE, f"because {said}"
        joined = f"{verdict}: {why}" if verdict == AS_THERE else f"{verdict}, {why}"
        found.append({"figure": figure, "verdict": verdict, "said": f"{figure} ({about}): {joined}."})
    ranks = AS_HOPED if of.surface is not None and surface.holds(of.surface) else NOT_HERE
    words = surface.answer(of.surface) if of.settings.mixtures else "no model of a mixture was trained."
    return [*found, {"figure": SURFACE, "verdict": ranks, "said": f"{SURFACE}: {ranks}: {words}"}]


def _curves(of: Compared) -> list[Claim] | str:
    """Figure 4: the soup's loss is the least, and on the generic mixture almost generic's; several trainings of a
    method have as many tokens in all.
    """
    if not of.has(SOUP, GENERIC):
        return "soup and generic were not both trained to their end"
    soup = of.ends(SOUP)
    claims = [
        below(f"the soup's loss on {kind} sets", "generic's", of.ends(SOUP, names), of.ends(GENERIC, names))
        for kind, names in of.by_kind.items()
    ]
    soups, generics = (of.ends(label, [GENERIC_SET]) for label in (SOUP, GENERIC))
    if soups and generics:
        less = {seed: loss - ALMOST for seed, loss in soups.items()}
        claims.append(
            below(f"the soup's loss on the generic mixture, minus {ALMOST},", "generic's", less, generics)
        )
    if of.has(EXPERTS):
        claims.append(below("on all, the soup's", "that of the domain experts", soup, of.ends(EXPERTS)))
    # Of CRISP in the middle of its schedule nothing follows: only whole trainings are compared.
    claims += [
        below("on all, the soup's", "CRISP's with as many tokens in all", soup, of.ends(label))
        for label, options in of.settings.options.items()
        if label.startswith(f"{CRISP}:") and options.get("shared_by") == len(of.names) and of.has(label)
    ]
    return claims


def _fine_tuning(of: Compared) -> list[Claim] | str:
    """Figure 6: the soup's loss stays below generic's after fine-tuning on any number of tokens."""
    tuned = {
        label: {
            cell["seed"]: cell["fine_tuned"]["points"]
            for cell in of.finished(label)
            if cell.get("fine_tuned")
        }
        for label in (SOUP, GENERIC)
    }
    numbers = sorted({point["tokens"] for points in tuned[SOUP].values() for point in points})
    if not numbers or not tuned[GENERIC]:
        return "soup and generic were not both fine-tuned"
    ends = [
        of_set.get("best_step", 0)
        for points in (*tuned[SOUP].values(), *tuned[GENERIC].values())
        for point in points
        for of_set in point["sets"].values()
    ]
    if 2 * sum(end >= LEARNING.steps for end in ends) > len(ends):
        return (
            f"most of the fine-tunings still got better after {LEARNING.steps} steps, the most that they have"
        )
    return [
        below(
            f"the soup's loss after fine-tuning on {number:,} tokens",
            "generic's",
            *(
                {
                    seed: fmean(fmean(of_set["window_losses"]) for of_set in point["sets"].values())
                    for seed, points in tuned[label].items()
                    for point in points
                    if point["tokens"] == number and point["sets"]
                }
                for label in (SOUP, GENERIC)
            ),
        )
        for number in numbers
    ]


def _sizes(of: Compared) -> list[Claim] | str:
    """Figure 7, left: the soup's loss lies below generic's at every size of a model."""
    soups, generics = (by_size.sizes(of.settings, of.cells, method) for method in (SOUP, GENERIC))
    both = [size for size in soups if size in generics]
    if len(both) < 2:
        return "soup and generic were not trained with models of two sizes"
    return [
        below(
            f"the soup's loss with {size:,} parameters",
            "generic's",
            of.ends(soups[size]),
            of.ends(generics[size]),
        )
        for size in both
    ]


def _texts(of: Compared) -> list[Claim] | str:
    """Figure 7, right: more texts make a better model, and one better than generic's."""
    numbers = few_texts.counted(of.sets)
    asked = [cell for cell in of.finished(SOUP) if few_texts.TEXTS in cell.get(FURTHER, {})]
    if not numbers or not asked:
        return "no soup was measured with the weights of few texts"
    measured = targets(list(of.sets))
    fewest = {cell["seed"]: fmean(few_texts.by_draw(cell, measured, numbers[0])) for cell in asked}
    with_all = "the soup's loss with all texts"
    claims = [below(with_all, f"that with {numbers[0]:,}", of.ends(SOUP), fewest)]
    if of.has(GENERIC):
        claims.append(below(with_all, "generic's", of.ends(SOUP), of.ends(GENERIC)))
    return claims


def _support(of: Compared) -> list[Claim] | str:
    """Figure 8: on the sets a few domains in a mixture are best, not one and not the most; on the generic mixture the
    most are better than one.
    """
    entries = by_number.by_option(of.settings).get((SOUP, "support_size"), {})
    entries = {value: label for value, label in entries.items() if of.has(label)}
    if len(entries) < by_number.LEAST_VALUES or 1 not in entries:
        return "no soups were trained with mixtures of 1 and of two larger numbers of domains"
    losses = {value: of.ends(label) for value, label in entries.items()}
    one, most = min(entries), max(entries)
    between = [value for value in entries if value not in (one, most) and losses[value]]
    # The paper's number, or what is nearest: not the best one, which losses with noise would choose.
    best = min(between, key=lambda value: abs(value - FEW_DOMAINS), default=None)
    if best is None:
        return "no soup between was measured on all of the sets"
    words = f"the loss on the sets with {best:g} domains in a mixture"
    return [
        below(words, "that with 1", losses[best], losses[one]),
        below(words, f"that with {most:g}", losses[best], losses[most]),
        below(
            f"the loss on the generic mixture with {most:g}",
            "that with 1",
            *(of.ends(entries[value], [GENERIC_SET]) for value in (most, one)),
        ),
    ]


def _experts(of: Compared) -> list[Claim] | str:
    """Figure 9: with as many parameters in training, a soup of low-rank experts is worse than one of dense ones."""
    dense, low = by_size.experts(of.settings, of.cells)
    pairs = [
        (max(equal, key=lambda label: dense[label]), label)
        for label, size in low.items()
        if (equal := [one for one in dense if size / EQUAL_SIZE <= dense[one] <= size * EQUAL_SIZE])
    ]
    if not pairs:
        return "no soups of dense and of low-rank experts were trained with as many parameters"
    return [
        below(
            f"the loss of {one} with dense experts",
            f"that of {other} with low-rank ones",
            of.ends(one),
            of.ends(other),
        )
        for one, other in pairs
    ]


def _merging(of: Compared) -> list[Claim] | str:
    """Figure 10: the merge is better for one set, the soup for many at once."""
    asked = {
        label: [cell for cell in of.finished(label) if by_number.AT_ONCE in cell.get(FURTHER, {})]
        for label in (SOUP, MERGE)
    }
    if not all(asked.values()):
        return "soup and merged-linear were not both measured with one model for several sets"
    most = max(count for count in by_number.COUNTS if count <= len(of.names))
    loss = {
        (label, count): {cell["seed"]: by_number.for_as_many(cell, of.names, count) for cell in cells}
        for label, cells in asked.items()
        for count in (1, most)
    }
    return [
        below("the merge's loss for 1 set", "the soup's", loss[MERGE, 1], loss[SOUP, 1]),
        below(f"the soup's loss for {most} sets at once", "the merge's", loss[SOUP, most], loss[MERGE, most]),
    ]


def _multiple_choice(of: Compared) -> list[Claim] | str:
    """Figure 5: the soup's models answer more questions than generic."""
    soup, generic = (choices.by_seed(of.choices, label) for label in (SOUP, GENERIC))
    if not soup or not generic:
        return (
            "soup and generic were asked nothing in multiple choice; ARC and MMLU, on which the paper measures it, "
            "could not be had"
        )
    return [
        below(
            "generic's share of right answers (BIG-bench's, not ARC's or MMLU's)", "the soup's", generic, soup
        )
    ]


Claims = Callable[[Compared], "list[Claim] | str"]
FIGURES: dict[str, tuple[str, Claims]] = {
    "Figure 4": ("training curves", _curves),
    "Figure 5": ("multiple choice", _multiple_choice),
    "Figure 6": ("fine-tuning", _fine_tuning),
    "Figure 7, left": ("sizes", _sizes),
    "Figure 7, right": ("few texts", _texts),
    "Figure 8": ("support size", _support),
    "Figure 9": ("low-rank experts", _experts),
    "Figure 10": ("merging", _merging),
}
"""What each shows, and the claims that it comes to, or why there are none."""
