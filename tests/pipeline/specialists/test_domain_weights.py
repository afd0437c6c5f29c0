from __future__ import annotations

import numpy as np
import pytest

from pipeline.specialists.domain_weights import assign_to_domains, check_domain_weights
from storage_schema.tree import Tree


def tree(leaves, coarse):
    leaves = np.array(leaves, np.float32)
    return Tree(
        coarse_CD=np.array(coarse, np.float32),
        leaves_KD=leaves,
        counts_K=np.isfinite(leaves).all(1).astype(np.int64),
        mean_distance_K=np.zeros(len(leaves), np.float32),
    )


NAN = float("nan")
# Leaves 0, 1 under the coarse node at (0, 0), 2, 3 under (10, 0); leaf 1 is empty, leaf 2 near the border.
TREE = tree([[0, 0], [NAN, NAN], [5.2, 0], [12, 0]], [[0, 0], [10, 0]])


def test_worked_example_of_both_rules():
    vectors = np.array([[1, 0], [4.9, 0], [6, 0], [11.5, 0]])
    # (4.9, 0) is nearest to leaf 2, but descends to coarse node 0, where only leaf 0 is left.
    assert assign_to_domains(vectors, TREE).domain_weights.tolist() == [0.25, 0, 0.5, 0.25]
    assert assign_to_domains(vectors, TREE, rule="tree").domain_weights.tolist() == [0.5, 0, 0.25, 0.25]


def test_empty_coarse_nodes_are_never_chosen():
    holed = tree([[NAN, NAN], [NAN, NAN], [5, 0], [12, 0]], [[NAN, NAN], [10, 0]])
    for rule in ("flat", "tree"):
        assert assign_to_domains(np.array([[0.0, 0.0]]), holed, rule=rule).domain_weights.tolist() == [
            0,
            0,
            1,
            0,
        ]


def test_the_estimate_is_a_distribution():
    vectors = np.random.default_rng(0).normal(scale=10, size=(1000, 2))
    for rule in ("flat", "tree"):
        weights = assign_to_domains(vectors, TREE, rule=rule).domain_weights
        assert weights.dtype == np.float64
        check_domain_weights(weights, 4)


def test_bad_embeddings_are_named():
    with pytest.raises(ValueError, match="zero texts"):
        assign_to_domains(np.empty((0, 2)), TREE)
    with pytest.raises(ValueError, match=r"shape \(1, 3\).*size 2"):
        assign_to_domains(np.zeros((1, 3)), TREE)
    with pytest.raises(ValueError, match="text 1 is not finite"):
        assign_to_domains(np.array([[0, 0], [NAN, 0]]), TREE)
    with pytest.raises(ValueError, match="rule is 'nearest'"):
        assign_to_domains(np.zeros((1, 2)), TREE, rule="nearest")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5, 0], r"shape \(3,\); the soup has 4"),
        ([[0.25] * 4], r"shape \(1, 4\)"),
        ([0.5, 0.6, -0.1, 0], "weight 2 is -0.1.*at least 0"),
        ([0.5, NAN, 0.5, 0], "weight 1 is nan"),
        ([0.5, 0.5, 0.1, 0], "sum to 1.1; .*1e-06"),
        ([0, 0, 0, 0], "sum to 0"),
    ],
)
def test_what_is_not_a_distribution_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        check_domain_weights(weights, 4)


def test_rounding_is_forgiven():
    assert check_domain_weights(np.full(4, 0.25, np.float32), 4).dtype == np.float64
    check_domain_weights([0.25, 0.25, 0.25, 0.25 + 5e-7], 4)
