"""A stream of a toy store, for its tests and those of the training that takes it."""

from __future__ import annotations

from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream.batches import MixtureStream
from storage_schema.domains import DomainStore

L = 16
LAW = Sparse(support_size=2)


def make_plan(store, *, law=LAW, cls=MixturePlan, **changes):
    opened = DomainStore(store)
    settings = dict(seed=3, batch_size=8, mixtures_per_step=4) | changes
    windows_K = opened.windows_K(L)
    return cls(windows_K, law, store_digest=opened.digest, sequence_length=L, **settings)


def make_stream(store, plan=None, **settings):
    plan = plan or make_plan(store)
    return MixtureStream(store_folder=str(store), sequence_length=L, plan=plan, **settings)
