from __future__ import annotations

import numpy as np
import pytest

from pipeline.tree import nearest as clustering
from pipeline.tree.nearest import Blocks, assign, distinct_rows, node_seed, sample_rows, without_unreached


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def blobs(number=6, each=50, size=16, seed=0):
    generator = np.random.default_rng(seed)
    centers = unit(generator.normal(size=(number, size)))
    labels = np.repeat(np.arange(number), each)
    return unit(centers[labels] + 0.05 * generator.normal(size=(len(labels), size))), labels


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


def test_half_precision_is_widened_exactly_whatever_the_blocks_and_threads(monkeypatch):
    vectors, centroids = blobs(each=70)[0].astype(np.float16), blobs(seed=3)[0][::40]
    expected = assign(vectors.astype(np.float32), centroids)
    monkeypatch.setattr(clustering, "ROWS_AT_ONCE", 32)
    monkeypatch.setattr(clustering, "_TORCH_GRAIN", 100)
    for threads in (1, 4):
        nearest, distance = assign(vectors, centroids, threads=threads)
        assert nearest.tobytes() == expected[0].tobytes()
        np.testing.assert_allclose(distance, expected[1], rtol=1e-6)


def test_means_are_the_means(monkeypatch):
    vectors, labels = blobs()
    monkeypatch.setattr(clustering, "ROWS_AT_ONCE", 32)
    means = Blocks(vectors, threads=2).means(labels, 7)
    np.testing.assert_allclose(means[:6], [vectors[labels == k].mean(0) for k in range(6)], atol=1e-6)
    assert np.isnan(means[6]).all()


def test_a_vector_that_is_not_finite_is_named():
    vectors, _ = blobs()
    vectors[7, 3] = np.nan
    with pytest.raises(ValueError, match="Vector 7 is not finite"):
        assign(vectors, blobs(seed=3)[0][::40])


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
