"""The model card of a specialist: what it was made of, from what, and what it is worth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soe_model.recipe import Recipe
    from soe_model.soup import SoupOfExperts

DOMAINS_SHOWN = 20
LOSSES = {
    "generic_instance": "generic mixture's instance",
    "nearest_domain": "nearest single domain",
    "nearest_centroids": "nearest centroids (Algorithm 3)",
    "made": "**this specialist**",
    "twin": "generic twin",
}
"""Of what a loss is → how the card says it."""


def model_card(name: str, soup: SoupOfExperts, recipe: Recipe, report: dict[str, Any]) -> str:
    """Markdown with the front matter that model hubs read."""
    method = recipe.how.get("method", "given coefficients")
    parts = [
        _front_matter(soup),
        f"# {name}",
        f"A specialist of the Soup-of-Experts `{soup.folder.name}` ({soup.config.num_experts} experts, "
        f"{soup.config.num_domains} domains), {report['parameters']:,} parameters: "
        "`shared + sum_j coefficient_j * expert_j`. "
        f"Its coefficients were found by: {method}. `specialist.json` is the whole recipe.",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "path/of/this/folder"\n'
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), "
        "AutoTokenizer.from_pretrained(folder)\n```",
        *_losses(report.get("losses")),
        *_sureness(report.get("texts")),
        *_domains(soup, recipe),
        "## Coefficients",
        "```json\n" + json.dumps(list(recipe.coefficients)) + "\n```",
        "## To make it again",
        f"It was made by `{_command(recipe)}`. From its recipe alone, and to check it:",
        "```bash\nsoe materialize specialist.json --soup SOUP --out DIR\nsoe verify DIR --soup SOUP\n```",
        f"Soup `{soup.digest}`; tensors `{report['tensors']}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _command(recipe: Recipe) -> str:
    how = recipe.how
    if "shares" in how:
        of = how["method"].removeprefix("average-")
        return f"soe blend RECIPES --shares {' '.join(f'{share:g}' for share in how['shares'])} --of {of} --soup SOUP"
    if "rule" not in how:
        return "SoupOfExperts.instances(coefficients)"
    options = f"--method {how['method']} --rule {how['rule']} --max-texts {how.get('num_texts', '?')}"
    if learning := how.get("learning"):
        options += f" --learning-steps {learning['steps']} --learning-rate {learning['learning_rate']:g}"
    if share := how.get("replay_share"):
        options += f" --replay-store STORE --replay-share {share:g}"
    return f"soe specialize SOUP --texts TEXTS {options}"


def _front_matter(soup: SoupOfExperts) -> str:
    lines = [
        "---",
        f"base_model: {json.dumps(soup.folder.name)}",
        "base_model_relation: merge",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [soup-of-experts, merge]",
        "---",
    ]
    return "\n".join(lines)


def _losses(losses: dict[str, Any] | None) -> list[str]:
    if not losses:
        return []
    rows = [f"| {LOSSES[key]} | {losses[key]:.4f} |" for key in LOSSES if key in losses]
    gain = losses.get("gain_interval")
    sure = (
        f" Against the generic instance it gains {losses['generic_instance'] - losses['made']:+.4f}, "
        f"{gain[0]:+.4f} to {gain[1]:+.4f} with 90% of bootstrap resamples of the windows."
        if gain
        else ""
    )
    head = f"Nats per token on {losses['windows']} windows of text that chose nothing (less is better).{sure}"
    return ["## Losses", head, "\n".join(["| model | loss |", "|---|---|", *rows])]


def _sureness(texts: dict[str, Any] | None) -> list[str]:
    if not texts:
        return []
    line = (
        f"{texts['count']} passages chose the domain weights: {texts['domains']} domains, entropy "
        f"{texts['entropy']:.2f} nats, mean distance to their centroids {texts['distance']:.3f} "
        f"(training passages: {texts['training_distance']:.3f})."
    )
    if "loss_interval" in texts:
        low, high = texts["loss_interval"]
        line += f" Had other passages of the same kind been given, its loss would lie in {low:.4f} to {high:.4f} (90%)."
    return ["## How sure the domain weights are", line, *texts.get("warnings", [])]


def _domains(soup: SoupOfExperts, recipe: Recipe) -> list[str]:
    if not recipe.domain_weights:
        return []
    words = soup.domain_words
    heaviest = sorted(recipe.domain_weights.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        f"| {domain} | {weight:.4f} | {' '.join(words[domain]) if words else ''} |"
        for domain, weight in heaviest[:DOMAINS_SHOWN]
    ]
    more = len(heaviest) - len(rows)
    note = [f"and {more} domains more." if more > 0 else ""]
    return [
        "## Domain weights",
        "\n".join(["| domain | weight | words |", "|---|---|---|", *rows]),
        *filter(None, note),
    ]
