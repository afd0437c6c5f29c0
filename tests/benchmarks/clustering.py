"""The 64 x 64 tree beside flat k-means: how good, how fast, and how far assignment is from what limits it.

    python -m tests.benchmarks.clustering --vectors 500000 --json result.json

The vectors are real text's: passages of at most 256 characters of the environment corpus, each the mean of the
encoder's own input vectors of its word pieces, unit norm, 384-d, float16. (A bag of words: what the whole
encoder would give takes hours, and its geometry is not what is compared here.) All methods see the same
vectors and cores, in one run. Inertia is the mean squared distance of all vectors to their centroid.

    python -m tests.benchmarks.clustering --embeddings STORE --clusters 32

compares on the embeddings of a store that was built; with 32 x 32 clusters, 100,000 passages are as many a cluster.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from timeit import repeat

import numpy as np

from flows.settings import BuildDomains
from pipeline.cores import available_cores
from pipeline.corpus.documents import BadDocument
from pipeline.corpus.listing import open_corpus
from pipeline.corpus.readers import read_documents
from pipeline.embeddings.build import read_embeddings
from pipeline.embeddings.embedder import DEFAULT, find_embedder, load_embedder
from pipeline.embeddings.word_pieces import tokenize, tokenizer_of
from pipeline.passages.cutting import cut_passages, text_hash
from pipeline.tree.descent import descend
from pipeline.tree.kmeans import KMeansSettings, fit_node
from pipeline.tree.nearest import Blocks, node_seed, sample_rows
from storage_schema.layout import home, store_folder
from storage_schema.tree import Tree

C = 64
SAMPLE = 128_000
SEARCHED = (1, 2, 4, 8)
"""Coarse nodes whose leaves are compared with a vector; OURS is what build-domains does by itself."""
OURS = BuildDomains.model_fields["searched_nodes"].default
CHUNK = 20_000


def vectors_of_text(number: int) -> np.ndarray:
    """float16 ``[number, 384]``, made once and kept under SOE_HOME/benchmarks."""
    kept = home() / "benchmarks" / f"word-vectors-{number}.npy"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        model = load_embedder(find_embedder(DEFAULT), max_seq_length=128)
        tokenizer_json = tokenizer_of(model)
        words = model[0].auto_model.get_input_embeddings().weight.detach().numpy()
        rows = np.empty((number, words.shape[1]), np.float16)
        done = 0
        for texts in _chunks_of_text():
            pieces = tokenize(tokenizer_json, texts[: number - done], 128)
            starts = np.cumsum(pieces.lengths_N) - pieces.lengths_N
            means = np.add.reduceat(words[pieces.ids], starts) / pieces.lengths_N[:, None]
            rows[done : done + len(means)] = means / np.linalg.norm(means, axis=1, keepdims=True)
            done += len(means)
            print(f"\r{done} of {number} vectors", end="", flush=True)
            if done == number:
                break
        print()
        np.save(kept, rows[:done])
    return np.load(kept)


def embeddings_of_store(name: str) -> np.ndarray:
    """float16 ``[N, 384]``, all training passages' of a store."""
    parts = sorted((store_folder(name) / "embeddings").glob("part-*.arrow"))
    return np.concatenate([read_embeddings(part)[1] for part in parts])


def _chunks_of_text():
    """Distinct passages of at least 32 characters; the files in a shuffled order, the same each time."""
    corpus = open_corpus("environment")
    order = np.random.Generator(np.random.Philox(0)).permutation(len(corpus.files))
    seen, texts = set(), []
    for number in order:
        for document in read_documents(corpus, corpus.files[number]):
            if isinstance(document, BadDocument):
                continue
            for text in cut_passages(document.text, 256):
                if len(text) >= 32 and (digest := text_hash(text)) not in seen:
                    seen.add(digest)
                    texts.append(text)
                if len(texts) == CHUNK:
                    yield texts
                    texts = []
    yield texts


def tree(vectors_ND: np.ndarray, settings: KMeansSettings, threads: int) -> dict[int, dict]:
    """Fit as the pipeline does, then assign with each of SEARCHED; a row for each."""
    begun = time.perf_counter()
    rows = sample_rows(len(vectors_ND), SAMPLE, node_seed(0, -1))
    root = fit_node(vectors_ND[rows], C, settings, seed=node_seed(0, -1), threads=threads)
    coarse_N, _ = Blocks(vectors_ND, threads=threads).nearest(root.centroids_kD)
    leaves = []
    for node in range(C):
        inside = vectors_ND[coarse_N == node]
        sample = inside[sample_rows(len(inside), SAMPLE, node_seed(0, node))]
        fit = fit_node(sample, C, settings, seed=node_seed(0, node), threads=threads)
        leaves.append(fit.centroids_kD)
    fitting = time.perf_counter() - begun
    none = np.zeros(C * C)
    fitted = Tree(
        coarse_CD=root.centroids_kD, leaves_KD=np.concatenate(leaves), counts_K=none, mean_distance_K=none
    )
    found = {}
    for searched in SEARCHED:
        begun = time.perf_counter()
        fallen = descend(vectors_ND, replace(fitted, searched_nodes=searched), threads=threads)
        assigning = time.perf_counter() - begun
        inertia = np.square(fallen.distances_N, dtype=np.float64).mean()
        found[searched] = _row(inertia, fitting, assigning, np.bincount(fallen.domains_N, minlength=C * C))
    return found


def flat_faiss(vectors_ND: np.ndarray) -> dict:
    """FAISS's k-means with 4096 centroids on all vectors, at its default of 25 iterations."""
    import faiss

    wide_ND = vectors_ND.astype(np.float32)
    begun = time.perf_counter()
    kmeans = faiss.Kmeans(
        wide_ND.shape[1], C * C, niter=25, seed=0, max_points_per_centroid=len(wide_ND), verbose=False
    )
    kmeans.train(wide_ND)
    fitting = time.perf_counter() - begun
    begun = time.perf_counter()
    squared, nearest = faiss.knn(wide_ND, kmeans.centroids, 1)
    counts = np.bincount(nearest[:, 0], minlength=C * C)
    return _row(float(squared.mean()), fitting, time.perf_counter() - begun, counts)


def mini_batch(vectors_ND: np.ndarray) -> dict:
    """scikit-learn's MiniBatchKMeans with 4096 centroids, at its defaults but for a batch of 10 a centroid."""
    from sklearn.cluster import MiniBatchKMeans

    wide_ND = vectors_ND.astype(np.float32)
    begun = time.perf_counter()
    kmeans = MiniBatchKMeans(C * C, batch_size=10 * C * C, n_init=1, random_state=0).fit(wide_ND)
    fitting = time.perf_counter() - begun
    begun = time.perf_counter()
    counts = np.bincount(kmeans.predict(wide_ND), minlength=C * C)
    assigning = time.perf_counter() - begun
    return _row(-kmeans.score(wide_ND) / len(wide_ND), fitting, assigning, counts)


def limits(vectors_ND: np.ndarray, folder: Path) -> dict:
    """Rows per second of the bare matrix product (with the coarse centroids and the leaves that are searched) and of
    reading the vectors.
    """
    wide_ND = vectors_ND[:100_000].astype(np.float32)
    centroids_kD = np.ascontiguousarray(wide_ND[: (1 + OURS) * C])
    product = min(repeat(lambda: wide_ND @ centroids_kD.T, number=1)) / len(wide_ND)
    path = folder / "read-rate.bin"
    vectors_ND.tofile(path)
    buffer = np.empty(1 << 24, np.uint8)

    def read() -> None:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    reading = min(repeat(read, number=1, repeat=3)) / len(vectors_ND)
    path.unlink()
    return {"product_rows_per_second": 1 / product, "read_rows_per_second": 1 / reading}


def _row(inertia: float, fitting: float, assigning: float, counts: np.ndarray) -> dict:
    shares = counts / counts.sum()
    return {
        "inertia": float(inertia),
        "fit_seconds": fitting,
        "assign_seconds": assigning,
        "imbalance": float(C * C * np.square(shares).sum()),
        "empty": int(C * C - np.count_nonzero(counts)),
    }


def main() -> None:
    global C
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--vectors", type=int, default=500_000)
    parser.add_argument("--embeddings", metavar="STORE", help="those of this store instead")
    parser.add_argument("--clusters", type=int, default=C, help="of each level")
    parser.add_argument(
        "--only-tree", action="store_true", help="leave out the flat methods, which take long"
    )
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args()
    C = options.clusters
    vectors_ND = (
        embeddings_of_store(options.embeddings) if options.embeddings else vectors_of_text(options.vectors)
    )
    threads = available_cores()
    result = {}
    print(f"{len(vectors_ND)} vectors, {threads} cores\n{'':24} inertia    fit s  assign s  imbalance  empty")

    def say(name: str, row: dict) -> None:
        result[name] = row
        print(
            f"{name:24} {row['inertia']:7.4f} {row['fit_seconds']:8.1f} {row['assign_seconds']:9.2f} "
            f"{row['imbalance']:10.2f} {row['empty']:6}",
            flush=True,
        )

    trees = {"tree": {}, "tree, no bound": {"size_limit": None}, "tree, random start": {"init": "random"}}
    for name, options_of_tree in trees.items():
        for searched, row in tree(vectors_ND, KMeansSettings(**options_of_tree), threads).items():
            say(name if searched == OURS else f"{name}, {searched} searched", row)
    if not options.only_tree:
        say("flat FAISS", flat_faiss(vectors_ND))
        say("MiniBatchKMeans", mini_batch(vectors_ND))
    rates = limits(vectors_ND, home() / "benchmarks")
    assigned = len(vectors_ND) / result["tree"]["assign_seconds"]
    limit = min(rates.values())
    ratios = {"assignment_of_limit": assigned / limit}
    print(
        f"assignment {assigned:,.0f} rows/s, limit {limit:,.0f} (matrix product "
        f"{rates['product_rows_per_second']:,.0f}, read {rates['read_rows_per_second']:,.0f}): "
        f"{ratios['assignment_of_limit']:.0%}"
    )
    if not options.only_tree:
        ours, flat = result["tree"], result["flat FAISS"]
        both = [row["fit_seconds"] + row["assign_seconds"] for row in (ours, flat)]
        ratios["inertia_over_flat"] = ours["inertia"] / flat["inertia"]
        ratios["flat_over_tree_seconds"] = both[1] / both[0]
        print(
            f"inertia {ratios['inertia_over_flat']:.4f} x flat FAISS, "
            f"{ratios['flat_over_tree_seconds']:.1f} times as fast"
        )
    if options.json:
        body = {"vectors": len(vectors_ND), "clusters": C * C, "embeddings": bool(options.embeddings)}
        body |= {"methods": result, "limits": rates, "ratios": ratios}
        body |= {"machine": f"{platform.machine()}, {threads} cores"}
        Path(options.json).write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
