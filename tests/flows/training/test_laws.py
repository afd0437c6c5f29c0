"""The laws that a run's settings name: what each comes to on a store, and settings that do not go together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from flows.settings import Pretrain
from flows.training import resolve_run
from pipeline.mixtures.compositions import Mixed, WithGeneric
from pipeline.mixtures.meta_distributions import Fixed, Sparse
from pipeline.mixtures.neighbourhoods import SCALES, Neighbourhood
from pipeline.mixtures.ratios import write_fixed
from storage_schema.domains import DomainStore
from tests.toy_store import make_store

ASKED = dict(
    name="x", steps=60, warmup_steps=6, batch_size=8, sequence_length=16, mixtures_per_step=4, num_experts=3
)
HALVES = [
    {"law": "neighbourhood", "share": 0.5},
    {"law": "sparse", "share": 0.5, "support_size": 2, "by_size": True, "generic_share": "triangular"},
]
"""Half neighbourhoods, half sparse by size, each mixed with the generic mixture."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return DomainStore(make_store(tmp_path_factory.mktemp("laws") / "toy", [400, 0, 300, 900]))


def plan(store, **settings):
    settings = Pretrain.model_validate_json(
        json.dumps(ASKED | {"store": str(store.folder.parent)} | settings)
    )
    training = resolve_run.resolve(settings, store).training
    return resolve_run.make_stream(settings, store, training).plan


def test_a_neighbourhood_is_of_the_store_s_centroids_and_mixed_with_the_generic_mixture(store):
    law = plan(store, meta_distribution="neighbourhood").meta_distribution
    assert isinstance(law, WithGeneric) and law.share == "triangular"
    assert law.law.description == Neighbourhood(store.tree.leaves_KD, SCALES).description
    pure = plan(store, meta_distribution="neighbourhood", generic_share=0, neighbourhood_scales=[0.5])
    assert pure.meta_distribution.description == Neighbourhood(store.tree.leaves_KD, [0.5]).description


def test_a_mixed_law_has_its_laws_with_their_own_settings(store):
    made = plan(store, meta_distribution="mixed", laws=HALVES)
    expected = Mixed(
        (
            (0.5, WithGeneric(law=Neighbourhood(store.tree.leaves_KD), share="triangular")),
            (0.5, WithGeneric(law=Sparse(support_size=2, by_size=True), share="triangular")),
        )
    )
    assert made.meta_distribution.description == expected.description
    steps = made.steps(0, 50)
    assert steps.support_TWs.shape == (50, 4, 3) and (steps.support_TWs == [0, 2, 3]).all()  # 1 is empty


def test_any_law_may_have_a_share_of_the_generic_mixture(store, tmp_path):
    write_fixed(np.array([1.0, 0, 0, 0]), tmp_path / "h.csv", run="notes")
    half = plan(store, meta_distribution="fixed", ratios=str(tmp_path / "h.csv"), generic_share=0.5)
    generic = np.array([24, 0, 18, 56]) / 98
    np.testing.assert_allclose(half.steps(3, 4).domain_weights(3, 4)[0], (np.eye(4)[0] + generic) / 2)
    uniform = plan(store, support_size=2, generic_share="uniform").meta_distribution
    assert uniform == WithGeneric(law=Sparse(support_size=2), share="uniform")


def test_a_law_without_a_generic_share_is_what_it_was(store):
    """The digest of a run that was begun before."""
    for share in ({}, {"generic_share": None}, {"generic_share": 0}):
        assert plan(store, support_size=2, **share).meta_distribution == Sparse(support_size=2)


def test_the_twin_of_a_mixed_soup_has_the_generic_mixture(store):
    assert isinstance(
        plan(store, method="generic", meta_distribution="mixed", laws=HALVES).meta_distribution, Fixed
    )


def test_a_run_s_settings_give_the_same_plan_when_they_are_read_again(store):
    settings = Pretrain(**ASKED, store=str(store.folder.parent), meta_distribution="mixed", laws=HALVES)
    written = Pretrain.model_validate_json(settings.model_dump_json(indent=1))
    again = Pretrain(**written.model_dump(exclude_defaults=True))  # as stream_of_run reads them
    training = resolve_run.resolve(settings, store).training
    digests = {resolve_run.make_stream(one, store, training).plan.digest for one in (settings, again)}
    assert len(digests) == 1


def law(**settings):
    return {"meta_distribution": "mixed", "laws": [{"law": "sparse", "share": 1.0} | settings]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"meta_distribution": "mixed"}, "=mixed draws from one of several laws: give them as laws"),
        ({"meta_distribution": "mixed", "laws": []}, "=mixed draws from one of several laws: give them as laws"),
        ({"laws": HALVES}, "laws is .* which meta_distribution=sparse does not use.*mixed"),
        ({"meta_distribution": "mixed", "laws": HALVES, "support_size": 2}, "support_size is 2, which .*mixed does"),
        (
            {"neighbourhood_scales": [0.1]},
            "neighbourhood_scales is .*, which meta_distribution=sparse does not use.*neighbourhood",
        ),
        ({"meta_distribution": "neighbourhood", "neighbourhood_scales": [0]}, "a scale is 0.0"),
        (law(law="uniform", support_size=2), "support_size is 2, which law=uniform does not use.*law sparse or"),
        (law(law="neighbourhood", by_size=True), "by_size is True, which law=neighbourhood does not use"),
        (law(law="fixed"), "law=fixed reads its mixtures from a table"),
        (law(support_size=4), "support_size is 4; it must be between 1 and the 3 domains"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(store, settings, message):
    with pytest.raises(ValueError, match=message):
        plan(store, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (law(share=0), "laws.0.share"),
        (law(share=-1), "laws.0.share"),
        (law(law="near"), "laws.0.law"),
        (law(law="mixed"), "laws.0.law"),
        (law(tau=1), "laws.0.tau"),
        ({"generic_share": 1.5}, "generic_share"),
        ({"generic_share": "half"}, "generic_share"),
        ({"meta_distribution": "near"}, "meta_distribution"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(settings, message):
    with pytest.raises(ValidationError, match=message):
        Pretrain.model_validate(settings)
