"""What lies on disk: every schema, path and manifest, and how to open and verify them.

manifest.py    a stage is a folder; its manifest is written last, by an atomic rename
layout.py      where stores, runs, soups and specialists live under SOE_HOME
corpus.py      passages and embeddings
domains.py     the tree of centroids and the domain partitions
soup.py        the bank on disk: shared parameters, experts, router
"""
