"""A tiny model, words in circles and K domains: what the tests of methods train on.

In domain k the next word is k + 1 further on, so after its first two words a window tells its domain.
"""

import torch

from soe_model.methods import method
from soe_model.model.backbone import gpt2_config
from soe_model.optimizers import AdamConfig
from soe_model.presets import SoupConfig, TrainingConfig
from tests.extras import needs

K, N, B, L, WORDS, STEPS = 4, 3, 8, 3, 8, 60
BACKBONE = gpt2_config(
    vocab_size=WORDS,
    sequence_length=L,
    embedding_size=16,
    num_layers=1,
    num_heads=2,
    initializer_range=0.1,
) | {"attn_implementation": "eager"}  # whose products are counted
GENERIC_K = torch.full((K,), 1 / K)
ROUTED = {"smear", "smear-frozen", "phatgoose", "arrow", "sparse-moe"}
"""Methods whose models are modules: test_smear.py, test_phatgoose.py and test_sparse_moe.py."""


def make(name, *, rank=None, epsilon=1e-8, steps=STEPS, expert_rate=5e-3, generic_K=GENERIC_K, **options):
    """The method of that name; `options` are its own."""
    soup = SoupConfig(
        backbone=BACKBONE, num_experts=N, num_domains=K, router_hidden=5, expert_std=0.02, expert_rank=rank
    )
    training = TrainingConfig(
        steps=steps, batch_size=B, sequence_length=L, mixtures_per_step=2, support_size=2, warmup_steps=min(5, steps),
        learning_rate=1e-2, expert_learning_rate=expert_rate, router_learning_rate=5e-3, gradient_clip=1.0,
        adam=AdamConfig(epsilon=epsilon),
    )  # fmt: skip
    if name in ("merged-ties", "merged-dare", "phatgoose", "arrow"):
        needs("peft", extra="exports")
    return method(name)(soup=soup, training=training, generic_K=generic_K, **options)


def windows(weights_K, number, generator):
    """Of a mixture of domains with the same words: the next one is k + 1 further on in domain k."""
    domain_n = torch.multinomial(weights_K, number, replacement=True, generator=generator)
    first_n = torch.randint(WORDS, (number,), generator=generator)
    return (first_n[:, None] + (domain_n + 1)[:, None] * torch.arange(L + 1)) % WORDS


def draw(run, number):
    """The batch of a step, as the run's mixtures ask for it."""
    generator = torch.Generator().manual_seed(number)
    mixtures = run.training.mixtures_per_step
    if run.domain_weights_K is not None:
        weights_WK = run.domain_weights_K.expand(mixtures, -1)
    else:
        of_support = torch.rand(mixtures, K, generator=generator).argsort(1) < run.training.support_size
        weights_WK = of_support * torch.rand(mixtures, K, generator=generator)
        weights_WK = weights_WK / weights_WK.sum(1, keepdim=True)
    tokens = torch.cat([windows(weights_K, B // mixtures, generator) for weights_K in weights_WK])
    return tokens, torch.arange(mixtures).repeat_interleave(B // mixtures), weights_WK


def trained(one, targets_WK=None):
    """Its runs, trained in their order."""
    learners = {}
    for run in one.runs(targets_WK):
        learner = learners[run.name] = one.begin(run, learners.get(run.begins_from))
        for number in range(run.training.steps):
            learner.train_step(*draw(run, number))
    return list(learners.values())


class Fixed:
    """A trained run whose model is known."""

    def __init__(self, model_P):
        self.model_P = model_P

    def instantiate(self, domain_weights_WK):
        return self.model_P.expand(len(domain_weights_WK), -1)


def some_models(one, number, *, seed=0):
    """Random models of the method's backbone, [number, P]."""
    return 0.1 * torch.randn(number, one.size.num_params, generator=torch.Generator().manual_seed(seed))


def learned(one, steps):
    """The learner of a method of one run after some steps, and their results."""
    [run] = one.runs()
    learner = one.begin(run)
    return learner, [learner.train_step(*draw(run, number)) for number in range(steps)]


def assert_causal(module, tokens, at_least):
    """Tokens change no logits before them, and the logits from them on by `at_least`."""
    before = module(input_ids=tokens).logits
    for k in range(1, L):
        others = tokens.clone()
        others[:, k:] = (others[:, k:] + 3) % WORDS
        after = module(input_ids=others).logits
        torch.testing.assert_close(after[:, :k], before[:, :k], rtol=0, atol=1e-5)
        assert (after[:, k:] - before[:, k:]).abs().max() > at_least
