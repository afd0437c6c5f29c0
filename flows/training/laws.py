"""The law of a run's mixtures (π, section 2.4) that its settings name."""

from __future__ import annotations

import numpy as np

from flows.settings import MixtureLaw, Pretrain, refuse_unused
from pipeline.mixtures.compositions import GenericShare, Mixed, WithGeneric
from pipeline.mixtures.meta_distributions import Dirichlet, Fixed, MetaDistribution, Sparse, window_shares
from pipeline.mixtures.neighbourhoods import SCALES, Neighbourhood
from pipeline.mixtures.ratios import read_fixed, read_ratios
from soe_model.presets import TrainingConfig
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError

SETTINGS_OF_LAW = {
    "sparse": ("support_size", "by_size", "generic_share"),
    "uniform": ("generic_share",),
    "dirichlet": ("support_size", "by_size", "concentration", "generic_share"),
    "neighbourhood": ("neighbourhood_scales", "generic_share"),
    "recorded": ("ratios", "generic_share"),
    "fixed": ("ratios", "generic_share"),
    "mixed": ("laws",),
}
"""The settings that each law reads."""
USUAL_GENERIC_SHARE: dict[str, GenericShare] = {"neighbourhood": "triangular"}
"""Where none is given; the other laws have none."""


def meta_distribution(settings: Pretrain, training: TrainingConfig, store: DomainStore) -> MetaDistribution:
    """The law of the run's mixtures on the domains of `store`.

    Raises ValueError for a setting that the law lacks or does not use, and for a `ratios` file that is missing or
    is no table of mixtures.
    """
    windows_K = store.windows_K(training.sequence_length)
    name = settings.meta_distribution
    if settings.method == "generic" and name != "fixed":
        if settings.ratios is not None:
            raise UserError(
                f"method=generic trains one model on one mixture, and ratios is {settings.ratios!r}: give "
                "meta_distribution=fixed with it, or leave ratios out."
            )
        return Fixed(window_shares(windows_K))  # whatever mixtures the soup beside it is trained on
    _check_used(settings, "meta_distribution")
    if name != "mixed":
        return _law(name, settings, training, store, windows_K)
    laws = []
    for law in settings.laws or []:
        _check_used(law, "law")
        laws.append((law.share, _law(law.law, law, training, store, windows_K)))
    return Mixed(tuple(laws))


def _check_used(settings: Pretrain | MixtureLaw, choice: str) -> None:
    """Raise ValueError for a setting of another law, or a missing one."""
    law = getattr(settings, choice)
    if "ratios" in SETTINGS_OF_LAW[law] and settings.ratios is None:
        raise UserError(f"{choice}={law} reads its mixtures from a table: give its path as ratios.")
    if isinstance(settings, Pretrain):
        if law == "mixed" and not settings.laws:
            raise UserError(
                f"{choice}={law} draws from one of several laws: give them as laws, each with its share, such as "
                '[{"law": "sparse", "share": 0.5}, {"law": "neighbourhood", "share": 0.5}].'
            )
        reads = SETTINGS_OF_LAW
    else:
        reads = {name: used for name, used in SETTINGS_OF_LAW.items() if name != "mixed"}
    refuse_unused(settings, choice, reads)


def _law(
    name: str, of: Pretrain | MixtureLaw, training: TrainingConfig, store: DomainStore, windows_K: np.ndarray
) -> MetaDistribution:
    """The law of that name with its settings, mixed with the generic mixture where that is asked for."""
    law = _alone(name, of, training, store, windows_K)
    share = USUAL_GENERIC_SHARE.get(name, 0.0) if of.generic_share is None else of.generic_share
    return WithGeneric(law=law, share=share) if share else law


def _alone(
    name: str, of: Pretrain | MixtureLaw, training: TrainingConfig, store: DomainStore, windows_K: np.ndarray
) -> MetaDistribution:
    if name == "dirichlet":
        return Dirichlet(concentration=of.concentration, support_size=of.support_size, by_size=of.by_size)
    if name == "neighbourhood":
        return Neighbourhood(store.tree.leaves_KD, of.neighbourhood_scales or SCALES)
    if of.ratios is not None and name == "recorded":
        return read_ratios(of.ratios)
    if of.ratios is not None:
        return read_fixed(of.ratios, len(windows_K))
    if name == "uniform":
        return Sparse(support_size=int((windows_K > 0).sum()), by_size=of.by_size)
    return Sparse(support_size=of.support_size or training.support_size, by_size=of.by_size)
