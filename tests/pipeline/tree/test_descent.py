"""Which leaf a vector falls into, when the leaves of few or of all coarse nodes are searched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.tree.descent import descend
from storage_schema.tree import Tree

C, k, SIZE = 5, 4, 16


@pytest.fixture
def random():
    return np.random.Generator(np.random.PCG64(3))


@pytest.fixture
def tree(random):
    coarse_CD = random.normal(size=(C, SIZE)).astype(np.float32)
    leaves_KD = np.repeat(coarse_CD, k, 0) + random.normal(size=(C * k, SIZE)).astype(np.float32)
    none = np.zeros(C * k)
    return Tree(coarse_CD=coarse_CD, leaves_KD=leaves_KD, counts_K=none, mean_distance_K=none)


def squared(vectors_ND, centroids_kD):
    return np.square(vectors_ND[:, None].astype(np.float64) - centroids_kD[None]).sum(2)


@pytest.mark.parametrize("searched", [1, 2, 3, 5, 99])
def test_it_is_the_nearest_leaf_of_the_nearest_nodes(tree, random, searched):
    vectors_ND = random.normal(size=(3000, SIZE)).astype(np.float32)
    coarse_NC, leaves_NK = squared(vectors_ND, tree.coarse_CD), squared(vectors_ND, tree.leaves_KD)
    near_Ns = np.argsort(coarse_NC, 1)[:, :searched]
    away_NK = ~(near_Ns[:, :, None] == np.arange(C * k) // k).any(1)
    found = descend(vectors_ND, replace(tree, searched_nodes=searched))
    expected_N = np.where(away_NK, np.inf, leaves_NK).argmin(1)
    assert np.array_equal(found.domains_N, expected_N)
    assert found.distances_N == pytest.approx(np.sqrt(leaves_NK[np.arange(3000), expected_N]), rel=1e-5)
    assert found.coarse_squared_N == pytest.approx(coarse_NC.min(1), rel=1e-4)
    if searched >= C:  # Algorithm 3's nearest centroid
        assert np.array_equal(expected_N, leaves_NK.argmin(1))


def test_what_is_nan_is_never_chosen_and_takes_no_place_among_those_searched(tree, random):
    vectors_ND = random.normal(size=(500, SIZE)).astype(np.float32)
    tree.coarse_CD[0], tree.leaves_KD[2 * k : 3 * k], tree.leaves_KD[-1] = np.nan, np.nan, np.nan
    found = descend(vectors_ND, replace(tree, searched_nodes=2))
    left = [1, 3, 4]
    two_N2 = np.array(left)[np.argsort(squared(vectors_ND, tree.coarse_CD[left]), 1)[:, :2]]
    leaves_NK = np.nan_to_num(squared(vectors_ND, tree.leaves_KD), nan=np.inf)
    away_NK = ~(two_N2[:, :, None] == np.arange(C * k) // k).any(1)
    assert np.array_equal(found.domains_N, np.where(away_NK, np.inf, leaves_NK).argmin(1))
    with pytest.raises(ValueError, match="the tree is empty"):
        descend(vectors_ND, replace(tree, leaves_KD=np.full_like(tree.leaves_KD, np.nan)))
    vectors_ND[7, 0] = np.inf
    with pytest.raises(ValueError, match="Vector 7 is not finite"):
        descend(vectors_ND, tree)


def test_the_file_says_how_many_nodes_are_searched(tree, tmp_path):
    path = tmp_path / "tree.arrow"
    tree = replace(tree, counts_K=np.ones(C * k, np.int64), searched_nodes=3)
    tree.write(path)
    assert Tree.read(path).searched_nodes == 3
    replace(tree, searched_nodes=0).write(path)
    with pytest.raises(ValueError, match="it says that b'0' nodes are searched"):
        Tree.read(path)
