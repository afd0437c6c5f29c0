"""Positions of the domains on a plane: the two principal components of their centroids.

Legend: K domains, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from storage_schema.tree import Tree


def positions(tree: Tree) -> np.ndarray:
    """Positions float64 [K, 2], from 0 to 1, on the plane in which the centroids, weighted by passages, vary most.

    Domains without passages are rows of NaN. The signs are fixed, so the same tree gives the same picture.
    """
    there_K = np.isfinite(tree.leaves_KD).all(1)
    found_K2 = np.full((tree.num_domains, 2), np.nan)
    leaves_KD = tree.leaves_KD[there_K].astype(np.float64)
    weights_K = np.sqrt(np.maximum(tree.counts_K[there_K], 1))
    centred_KD = leaves_KD - np.average(leaves_KD, axis=0, weights=weights_K**2)
    _, _, axes_DD = np.linalg.svd(centred_KD * weights_K[:, None], full_matrices=False)
    plane_2D = axes_DD[:2]
    largest_2 = np.abs(plane_2D).argmax(1)
    plane_2D = plane_2D * np.sign(plane_2D[np.arange(len(plane_2D)), largest_2])[:, None]
    flat_K2 = np.zeros((len(leaves_KD), 2))
    flat_K2[:, : len(plane_2D)] = centred_KD @ plane_2D.T
    span = np.ptp(flat_K2, axis=0)
    found_K2[there_K] = np.where(span > 0, (flat_K2 - flat_K2.min(0)) / np.where(span > 0, span, 1), 0.5)
    return found_K2


def centre(positions_K2: np.ndarray, weights: Mapping[int, float]) -> np.ndarray | None:
    """Weighted mean position, float64 [2], of the domains in `weights`; None if none of them has a position."""
    domains = [i for i in weights if not np.isnan(positions_K2[i]).any()]
    if not domains:
        return None
    return np.average(positions_K2[domains], axis=0, weights=[weights[i] for i in domains])
