"""The parameters of the flows. Prefect turns each model into a checked form; the jobs read the same JSON.

Relative names: a store, run, soup or specialist without a slash lives under ``SOE_HOME``
(see ``storage_schema/layout.py``); anything with a slash is a path. Give corpora as absolute paths.
"""

from __future__ import annotations

from flows.settings.base import Settings, refuse_unused
from flows.settings.compare_methods import CompareMethods
from flows.settings.pretrain import MixtureLaw, Pretrain
from flows.settings.specialize import SpecialistMethod, Specialize
from flows.settings.stores import AddDocuments, BuildDomains

__all__ = [
    "AddDocuments",
    "BuildDomains",
    "CompareMethods",
    "MixtureLaw",
    "Pretrain",
    "Settings",
    "SpecialistMethod",
    "Specialize",
    "refuse_unused",
]
