"""Learning with a known answer: eight artificial languages over the same words, one a domain.

The best possible loss of a language is its entropy rate. A model of 5,000 parameters cannot hold eight
transition tables at once; a soup gives each mixture its own instance, so its specialists must come closer.
"""

import numpy as np
import torch

from pipeline.mixtures.meta_distributions import Fixed, Sparse, window_shares
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream.batches import MixtureStream
from soe_model.model.backbone import gpt2_config
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.specialists.evaluation import mean_loss
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from tests.planted import planted_languages
from tests.toy_store import write_store

LANGUAGES, WORDS, L, STEPS = 8, 40, 32, 400


def text(language, count, generator):
    cumulative = np.cumsum(language.transition_VV, axis=1)
    words, word = [], 0
    for uniform in generator.random(count):
        word = min(int(np.searchsorted(cumulative[word], uniform, side="right")), WORDS - 1)
        words.append(word + 1)
    return np.array(words)


def specialist_losses(store, *, num_experts, evaluation):
    windows_K = DomainStore(store).windows_K(L)
    mixtures = 8 if num_experts else 1
    law = Sparse(support_size=2) if num_experts else Fixed(window_shares(windows_K))
    plan = MixturePlan(windows_K, law, seed=0, batch_size=16, mixtures_per_step=mixtures)
    backbone = gpt2_config(vocab_size=64, sequence_length=L, embedding_size=16, num_layers=1, num_heads=1)
    training = TrainingConfig(
        steps=STEPS, batch_size=16, sequence_length=L, mixtures_per_step=mixtures, support_size=2,
        learning_rate=1e-2, expert_learning_rate=5e-3, router_learning_rate=5e-3, warmup_steps=20,
        final_learning_rate_fraction=0.05, gradient_clip=1.0,
    )  # fmt: skip
    soup = SoupConfig(backbone=backbone, num_experts=num_experts, num_domains=LANGUAGES, router_hidden=32)
    trainer = SoupTrainer(soup, training)
    stream = MixtureStream(store_folder=str(store), sequence_length=L, plan=plan)
    for batch in stream.in_process(0, STEPS):
        trainer.train_step(
            torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        )
    losses = []
    for instance, windows in zip(trainer.instantiate(torch.eye(LANGUAGES)), evaluation, strict=True):
        trainer.backbone.params_P.copy_(instance)
        losses.append(mean_loss(trainer.backbone.module, windows))
    return np.array(losses)


def test_specialists_come_closer_to_the_entropy_than_the_generic_twin(tmp_path):
    torch.set_num_threads(1)
    languages = planted_languages(LANGUAGES, words=WORDS, successors=3, shared=1.0, seed=3)
    generator = np.random.Generator(np.random.PCG64(0))
    store = write_store(tmp_path, [text(language, 20_000, generator) for language in languages])
    evaluation = [
        torch.from_numpy(text(language, 20 * L + 1, generator)).unfold(0, L + 1, L) for language in languages
    ]
    best = np.array([language.nats_per_word for language in languages])
    soup = specialist_losses(store, num_experts=8, evaluation=evaluation)
    twin = specialist_losses(store, num_experts=0, evaluation=evaluation)
    print(f"best {best.mean():.3f}, soup {soup.mean():.3f}, twin {twin.mean():.3f} nats per word")
    assert (soup > best - 0.1).all()  # below the entropy would be a leak
    assert soup.mean() - best.mean() < 0.8 * (twin.mean() - best.mean())
