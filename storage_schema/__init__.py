"""What lies on disk: every schema, path and manifest, and how to open and verify them.

manifest.py    a stage is a folder; its manifest is written last, by an atomic rename
layout.py      where stores, runs, soups and specialists live under SOE_HOME
arrow_files.py Arrow files of ours, their types and extents checked before use
json_files.py  JSON within bounds
versions.py    the schema's version, and who wrote a file; a newer one is refused
corpus.py      passages and embeddings
domains.py     the tree of centroids and the domain partitions
soup.py        the bank on disk: shared parameters, experts, router
"""
