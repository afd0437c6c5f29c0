"""Passages, embeddings and tree → the domain partitions."""
