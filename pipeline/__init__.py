"""Corpus → passages → embeddings → domains → streams of weighted mixtures."""
