"""Everything on disk: its schemas, paths and manifests, and how it is opened and verified.

stage.py       a stage is a folder; its manifest is written last, by an atomic rename
manifest.py    what a finished folder was made of, and the size and sha256 of its files
layout.py      where stores, runs, soups and specialists live under SOE_HOME
corpus.py      passages and embeddings
domains.py     the domain partitions
tree.py        the tree of centroids
arrow_files.py our Arrow and Parquet files, their types and extents checked before use
json_files.py  JSON within bounds
versions.py    the schema's version, and which release wrote a file
aside.py       writing a file aside and renaming it, so that it is whole after any crash
lock.py        one writer per folder
verified.py    checking every byte of a large artefact once
room.py        whether a disk has room
"""
