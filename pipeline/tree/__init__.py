"""The tree of centroids: fitted, and asked for the nearest."""
