from __future__ import annotations

import numpy as np
import pytest

from pipeline import clustering
from pipeline.clustering import assign, distinct_rows, fit_node, node_seed, sample_rows, without_unreached


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def blobs(number=6, each=50, size=16, seed=0):
    generator = np.random.default_rng(seed)
    centers = unit(generator.normal(size=(number, size)))
    labels = np.repeat(np.arange(number), each)
    return unit(centers[labels] + 0.05 * generator.normal(size=(len(labels), size))), labels


def test_separate_groups_are_found():
    vectors, labels = blobs()
    for seed in range(5):
        nearest, distance = assign(vectors, fit_node(vectors, 6, iterations=20, seed=seed))
        assert len({(a, b) for a, b in zip(nearest, labels, strict=True)}) == 6
        assert distance.max() < 0.5


def test_same_seed_same_bytes_other_seed_other_order():
    vectors, _ = blobs(each=200)
    first = fit_node(vectors, 16, iterations=10, seed=3)
    assert first.tobytes() == fit_node(vectors, 16, iterations=10, seed=3).tobytes()
    assert first.tobytes() != fit_node(vectors, 16, iterations=10, seed=4).tobytes()


def test_fewer_distinct_vectors_than_clusters_leave_nan():
    vectors = np.repeat(unit(np.random.default_rng(0).normal(size=(3, 8))), [5, 1, 9], axis=0)
    centroids = fit_node(vectors, 5, iterations=5, seed=0)
    assert np.isfinite(centroids[:3]).all() and np.isnan(centroids[3:]).all()
    nearest, distance = assign(vectors, centroids)
    assert np.bincount(nearest, minlength=5).tolist() == [5, 1, 9, 0, 0]
    assert distance.max() == 0
    assert np.isnan(fit_node(vectors[:0], 4, iterations=5, seed=0)).all()


def test_more_duplicates_than_anything_else():
    vectors = np.concatenate([np.repeat(unit(np.eye(8)[:1]), 500, axis=0), blobs(size=8)[0]])
    centroids = fit_node(vectors, 7, iterations=10, seed=0)
    assert np.isfinite(centroids).all()
    assert len(set(assign(vectors[:500], centroids)[0])) == 1


def test_assignment_is_to_the_nearest_finite_centroid():
    generator = np.random.default_rng(1)
    vectors, centroids = (
        unit(generator.normal(size=(300, 12))),
        generator.normal(size=(9, 12)).astype(np.float32),
    )
    centroids[[2, 5]] = np.nan
    distances = np.linalg.norm(vectors[:, None] - centroids[None], axis=2)
    nearest, distance = assign(vectors, centroids)
    assert nearest.tolist() == np.nanargmin(distances, axis=1).tolist()
    np.testing.assert_allclose(distance, np.nanmin(distances, axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match="No centroid"):
        assign(vectors, np.full((2, 12), np.nan, np.float32))


def test_nan_vectors_are_refused_by_the_fit():
    vectors, _ = blobs()
    vectors[7, 3] = np.nan
    with pytest.raises(RuntimeError, match="NaN"):
        fit_node(vectors, 4, iterations=5, seed=0)


def test_helpers():
    assert distinct_rows(np.array([[1, 2], [3, 4], [1, 2], [0, 0]], np.float32)).tolist() == [0, 1, 3]
    rows = sample_rows(1000, 100, seed=5)
    assert len(set(rows)) == 100 and (np.diff(rows) > 0).all() and rows.max() < 1000
    assert rows.tolist() == sample_rows(1000, 100, seed=5).tolist() != sample_rows(1000, 100, seed=6).tolist()
    assert sample_rows(10, 100, seed=5).tolist() == list(range(10))
    assert len({node_seed(seed, node) for seed in range(5) for node in range(-1, 64)}) == 5 * 65
    assert np.isnan(without_unreached(np.ones((2, 3), np.float32), np.array([0, 4]))).tolist() == [
        [True] * 3,
        [False] * 3,
    ]


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    import faiss
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch .* sees no GPU.*use_gpu=false"):
        clustering.check_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(ValueError, match="FAISS .* sees no GPU.*`gpu` extra.*use_gpu=false"):
        clustering.check_gpu()
