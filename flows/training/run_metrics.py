"""A pretraining run's numbers as Ray metrics: what Prometheus scrapes and the Grafana dashboard shows.

A run has 22 series; none has a label for domains or experts.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

PREFIX = "ray_"
"""Ray puts it before the names below."""
GAUGES = {
    "soe_step": "Steps done.",
    "soe_steps_planned": "Steps of the whole run.",
    "soe_loss": "Mean loss of the batch, nats per token.",
    "soe_gradient_norm": "Global gradient norm before clipping.",
    "soe_router_gradient_norm": "The router's part of it.",
    "soe_router_entropy": "Entropy of the experts' shares, nats; ln(number of experts) at most.",
    "soe_coefficient_spread": "std(alpha) / rms(alpha) over mixtures: 0 if all have the same coefficients.",
    "soe_instance_spread": "How far instances lie from their mean, by how far that lies from the shared parameters.",
    "soe_expert_cosine": "Mean |cos| of two experts: 1 if they lie on one line.",
    "soe_own_instance_loss": "Of the last step's batch under its mixtures' own instances, nats per token.",
    "soe_generic_instance_loss": "The same under the generic mixture's instance.",
    "soe_learning_rate": "Of the shared parameters.",
    "soe_tokens_per_second": "Tokens of the global batch per second, without checkpoints.",
    "soe_mixture_distance": "Total variation between what was drawn and its target since this attempt began.",
    "soe_domains_drawn": "Domains of which something was drawn since this attempt began.",
    "soe_workers": "Training workers.",
    "soe_checkpoint_unix_seconds": "When the newest checkpoint was whole; its age is time() less this.",
}
SECONDS = "soe_step_seconds"
TOKENS = "soe_tokens_trained"
"""A counter, scraped as ray_soe_tokens_trained_total: steps that come again after a crash count again."""
STEP_PHASES = ("data", "combine", "forward_backward", "update")
"""Labels of :data:`SECONDS`: waiting for the stream, and the parts of a step."""


class RunMetrics:
    """The metrics of one run; its first worker sets them."""

    def __init__(self, run: str):
        tags = {"run": run}
        self._gauges = {name: Gauge(name, text, ("run",)) for name, text in GAUGES.items()}
        self._seconds = Gauge(SECONDS, "Seconds of a step, by part.", ("run", "part"))
        self._tokens = Counter(TOKENS, "Tokens trained on by this attempt.", ("run",))
        for metric in (*self._gauges.values(), self._seconds, self._tokens):
            metric.set_default_tags(tags)

    def set(self, values: Mapping[str, float]) -> None:
        """Set gauges, named without ``soe_``."""
        for name, value in values.items():
            self._gauges[f"soe_{name}"].set(value)

    def add(self, *, tokens: int, seconds: Mapping[str, float]) -> None:
        """Count tokens, and set the seconds of a step, by part."""
        self._tokens.inc(tokens)
        for part in STEP_PHASES:
            self._seconds.set(seconds.get(part, 0.0), {"part": part})
