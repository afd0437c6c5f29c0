"""The plane that domains are drawn on."""

import numpy as np

from pipeline.reports.domain_plane import centre, positions
from storage_schema.tree import Tree


def test_near_domains_lie_near_on_the_plane():
    leaves_KD = np.repeat(np.eye(3, 5, dtype=np.float32), 2, axis=0)
    leaves_KD[::2, 3] = 0.01
    leaves_KD[5] = np.nan
    tree = Tree(
        coarse_CD=leaves_KD[:1],
        leaves_KD=leaves_KD,
        counts_K=np.array([5, 5, 5, 5, 5, 0]),
        mean_distance_K=np.zeros(6, np.float32),
    )
    flat_K2 = positions(tree)
    assert flat_K2.shape == (6, 2) and np.nanmin(flat_K2) == 0 and np.nanmax(flat_K2) == 1
    assert np.isnan(flat_K2[5]).all() and np.isfinite(flat_K2[:5]).all()
    apart = np.linalg.norm(flat_K2[:5, None] - flat_K2[None, :5], axis=2)
    assert max(apart[0, 1], apart[2, 3]) < 0.05 < 0.5 < min(apart[0, 2], apart[2, 4], apart[0, 4])


def test_the_centre_is_that_of_the_weighted_domains_that_have_a_place():
    positions_K2 = np.array([[0.0, 1.0], [1.0, 0.0], [np.nan, np.nan]])
    assert centre(positions_K2, {0: 0.25, 1: 0.25, 2: 0.5}).tolist() == [0.5, 0.5]
    assert centre(positions_K2, {2: 1.0}) is None
