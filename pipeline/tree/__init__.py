"""The tree of centroids: fitting it, and finding the nearest centroid."""
