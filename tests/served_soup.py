"""A tiny soup that can be served: a real embedder's centroids, a byte-level tokenizer, random experts.

python -m tests.served_soup FOLDER    writes one, to look at with `soe serve`
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.embedder import DEFAULT, find_embedder, load_embedder
from pipeline.tokenizer import train_tokenizer
from soe_model.files.write_soup import write_soup
from soe_model.model.backbone import gpt2_config
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.training.trainer import SoupTrainer
from storage_schema.stage import open_stage
from storage_schema.tree import Tree

PIECES, POSITIONS, DOMAINS = 16, 64, 8
"""The embedder reads so many word pieces; the models have so many positions."""
TOPICS = {
    "cooking": "simmer the {} with garlic and butter until the sauce is thick",
    "astronomy": "the telescope saw a {} orbit a distant star in the galaxy",
    "sailing": "hoist the sail and steer the {} into the harbour before the wind turns",
    "law": "the court ruled that the {} in the contract cannot be enforced",
    "medicine": "the doctor treated the {} of the patient with antibiotics",
    "football": "the striker kicked the {} past the goalkeeper in the second half",
    "gardening": "plant the {} in moist soil and prune it in the spring",
    "music": "the violin played the {} while the orchestra tuned its strings",
}
NOUNS = (
    *(
        "onion",
        "comet",
        "boat",
        "clause",
        "fever",
        "ball",
        "rose",
        "melody",
        "pepper",
        "planet",
        "mast",
        "penalty",
    ),
    *(
        "wound",
        "corner",
        "tulip",
        "chord",
        "carrot",
        "moon",
        "rudder",
        "appeal",
        "cough",
        "header",
        "shrub",
        "solo",
    ),
)


def sentences(topic: str, number: int = len(NOUNS)) -> list[str]:
    """So many sentences of a topic, each another one."""
    return [TOPICS[topic].format(noun) for noun in NOUNS[:number]]


def make_served_soup(
    folder: Path,
    *,
    steps: int = 0,
    experts: int = DOMAINS,
    width: int = 32,
    layers: int = 2,
    vocab_size: int = 400,
) -> Path:
    """Write the soup to `folder`; with `steps` of training its specialists are worth something."""
    texts = [sentence for topic in TOPICS for sentence in sentences(topic)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(iter([texts]), vocab_size=vocab_size)
    tokenizer.save(str(folder.parent / f"{folder.name}-tokenizer.json"))
    # Without training, experts so large that each mixture writes something else.
    size = 0.05 if steps else 0.3
    backbone = gpt2_config(
        vocab_size=tokenizer.get_vocab_size(),
        sequence_length=POSITIONS,
        embedding_size=width,
        num_layers=layers,
        num_heads=2,
        initializer_range=0.1,
    )
    soup = SoupConfig(
        backbone=backbone, num_experts=experts, num_domains=DOMAINS, router_hidden=16, expert_std=size
    )
    torch.manual_seed(0)
    trainer = SoupTrainer(soup, _training(max(1, steps)))
    for step in range(steps):
        trainer.train_step(*_batch(tokenizer, step))
    stage = open_stage(
        folder,
        kind="soup",
        configuration={
            "soup": {
                "backbone": backbone,
                "num_experts": experts,
                "num_domains": DOMAINS,
                "router_hidden": 16,
                "expert_std": size,
            },
            "training": {"sequence_length": POSITIONS},
            "embedder": {"embedder": DEFAULT, "revision": None, "max_seq_length": PIECES},
        },
        inputs={},
    )
    words = [[topic, *(word for word in TOPICS[topic].split() if len(word) > 4)] for topic in TOPICS]
    write_soup(
        stage.work,
        trainer,
        tree=_tree(),
        tokenizer=folder.parent / f"{folder.name}-tokenizer.json",
        domain_words=words,
    )
    stage.finish({})
    return folder


def _training(steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=16,
        sequence_length=POSITIONS,
        mixtures_per_step=4,
        warmup_steps=min(10, steps),
        learning_rate=5e-3,
        expert_learning_rate=3e-3,
        router_learning_rate=3e-3,
        gradient_clip=1.0,
    )


def _batch(tokenizer, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four mixtures of one or two topics, four windows each."""
    random = np.random.default_rng(step)
    weights_WK, windows = torch.zeros(4, DOMAINS), []
    for mixture in range(4):
        chosen = random.choice(DOMAINS, size=random.integers(1, 3), replace=False)
        weights_WK[mixture, chosen] = 1 / len(chosen)
        for _ in range(4):
            topic = list(TOPICS)[random.choice(chosen)]
            ids: list[int] = []
            while len(ids) <= POSITIONS:
                ids += [*tokenizer.encode(random.choice(sentences(topic))).ids, 0]
            windows.append(ids[: POSITIONS + 1])
    return torch.tensor(windows), torch.arange(16) // 4, weights_WK


def _tree() -> Tree:
    """A domain a topic, two coarse nodes; the centroids are means of what the embedder makes of its sentences."""
    embedder = load_embedder(find_embedder(DEFAULT), max_seq_length=PIECES)
    leaves, distances = [], []
    for topic in TOPICS:
        vectors = embed_texts(embedder, sentences(topic))
        mean = vectors.mean(0)
        leaves.append(mean)
        distances.append(np.linalg.norm(vectors - mean, axis=1).mean())
    leaves_KD = np.stack(leaves).astype(np.float32)
    half = DOMAINS // 2
    return Tree(
        coarse_CD=np.stack([leaves_KD[:half].mean(0), leaves_KD[half:].mean(0)]),
        leaves_KD=leaves_KD,
        counts_K=np.full(DOMAINS, len(NOUNS), np.int64),
        mean_distance_K=np.array(distances, np.float32),
    )


if __name__ == "__main__":
    print(make_served_soup(Path(sys.argv[1]), steps=300))
