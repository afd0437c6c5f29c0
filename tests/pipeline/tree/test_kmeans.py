from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.tree import nearest as clustering
from pipeline.tree.kmeans import KMeansSettings, fit_node
from pipeline.tree.nearest import assign
from tests.pipeline.tree.test_nearest import blobs, unit

SETTINGS = KMeansSettings(iterations=20)


def test_separate_groups_are_found():
    vectors, labels = blobs()
    for seed in range(5):
        fit = fit_node(vectors, 6, SETTINGS, seed=seed)
        nearest, distance = assign(vectors, fit.centroids_kD)
        assert len({(a, b) for a, b in zip(nearest, labels, strict=True)}) == 6
        assert distance.max() < 0.5
        assert fit.inertia == pytest.approx(np.square(distance).mean(), rel=1e-4)


def test_same_seed_same_bytes_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(clustering, "ROWS_AT_ONCE", 128)
    vectors = blobs(each=200)[0].astype(np.float16)
    first = fit_node(vectors, 16, SETTINGS, seed=3)
    for threads in (1, 2, 5):
        again = fit_node(vectors, 16, SETTINGS, seed=3, threads=threads)
        assert again.centroids_kD.tobytes() == first.centroids_kD.tobytes()
        assert again.inertia == first.inertia
    assert first.centroids_kD.tobytes() != fit_node(vectors, 16, SETTINGS, seed=4).centroids_kD.tobytes()


def test_the_start_spreads_and_more_starts_are_no_worse():
    """Groups of very unequal size: random starts miss the small ones."""
    generator = np.random.default_rng(0)
    centers = unit(generator.normal(size=(12, 32)))
    labels = np.repeat(np.arange(12), [2000] + [20] * 11)
    vectors = unit(centers[labels] + 0.02 * generator.normal(size=(len(labels), 32)))
    free = replace(SETTINGS, size_limit=None)

    def inertia(settings):
        return np.array([fit_node(vectors, 12, settings, seed=seed).inertia for seed in range(5)])

    assert inertia(free).mean() < 0.5 * inertia(replace(free, init="random")).mean()
    assert (inertia(replace(free, starts=4)) <= inertia(free) + 1e-9).all()


def test_the_bound_makes_sizes_more_even_and_is_counted():
    generator = np.random.default_rng(1)
    vectors = unit(np.eye(24)[0] + generator.normal(size=(4000, 24)) * np.linspace(0.02, 0.6, 4000)[:, None])

    def largest(settings):
        fit = fit_node(vectors, 16, settings, seed=0)
        return np.bincount(assign(vectors, fit.centroids_kD)[0], minlength=16).max() / 250, fit.splits

    free, splits = largest(replace(SETTINGS, size_limit=None))
    assert splits == 0
    bounded, splits = largest(replace(SETTINGS, size_limit=1.2))
    assert splits > 0 and bounded < free


def test_fewer_distinct_vectors_than_clusters_leave_nan():
    vectors = np.repeat(unit(np.random.default_rng(0).normal(size=(3, 8))), [5, 1, 9], axis=0)
    centroids = fit_node(vectors, 5, SETTINGS, seed=0).centroids_kD
    assert np.isfinite(centroids[:3]).all() and np.isnan(centroids[3:]).all()
    nearest, distance = assign(vectors, centroids)
    assert np.bincount(nearest, minlength=5).tolist() == [5, 1, 9, 0, 0]
    assert distance.max() == 0
    assert np.isnan(fit_node(vectors[:0], 4, SETTINGS, seed=0).centroids_kD).all()


def test_more_duplicates_than_anything_else():
    vectors = np.concatenate([np.repeat(unit(np.eye(8)[:1]), 500, axis=0), blobs(size=8)[0]])
    centroids = fit_node(vectors, 7, SETTINGS, seed=0).centroids_kD
    assert np.isfinite(centroids).all()
    assert len(set(assign(vectors[:500], centroids)[0])) == 1


def test_nan_vectors_are_refused():
    vectors, _ = blobs()
    vectors[7, 3] = np.nan
    with pytest.raises(ValueError, match="Vector 7 is not finite"):
        fit_node(vectors, 4, SETTINGS, seed=0)
