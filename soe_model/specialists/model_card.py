"""The model card of a specialist: what it was made of, from what, and what it is worth."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from soe_model.specialists.gain import gain_line
from soe_model.specialists.recipe import FINE_TUNED, Recipe
from soe_model.specialists.refining import steps_taken

if TYPE_CHECKING:
    from soe_model.files.soup import SoupOfExperts

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
    tuned = ", and then all of them trained on its texts" if method == FINE_TUNED else ""
    said = f"Its coefficients were found by: {method}. `specialist.json` is the whole recipe"
    if tuned:
        said = "Its coefficients are those it began from"
    parts = [
        _front_matter(soup),
        f"# {name}",
        f"A specialist of the Soup-of-Experts `{soup.folder.name}` ({soup.config.num_experts} experts, "
        f"{soup.config.num_domains} domains), {report['parameters']:,} parameters: "
        f"`shared + sum_j coefficient_j * expert_j`{tuned}. {said}.",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "path/of/this/folder"\n'
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), "
        "AutoTokenizer.from_pretrained(folder)\n```",
        f"**{gain_line(recipe.how, report)}**",
        *_losses(report.get("losses")),
        *_sureness(report.get("texts"), report.get("losses") or {}, recipe.how),
        *_domains(soup, recipe),
        "## Coefficients",
        "```json\n" + json.dumps(list(recipe.coefficients)) + "\n```",
        *_again(name, soup, recipe, report),
        f"Soup `{soup.digest}`; tensors `{report['tensors']}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _again(name: str, soup: SoupOfExperts, recipe: Recipe, report: dict[str, Any]) -> list[str]:
    parts = ["## To make it again", *_origin(name, soup, recipe.how, report)]
    if recipe.how.get("method") == FINE_TUNED:
        return [
            *parts,
            "Its recipe does not rebuild it, nor does `soe verify` check it: keep its `model.safetensors`.",
        ]
    return [
        *parts,
        "From its recipe alone, and to check it:",
        "```bash\nsoe materialize specialist.json --soup SOUP --out DIR\nsoe verify DIR --soup SOUP\n```",
    ]


def _origin(name: str, soup: SoupOfExperts, how: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """The command with the settings that the recipe holds, then what it does not hold."""
    if isinstance(how.get("shares"), list):
        return _blended(name, soup, how)
    if "rule" not in how:
        return ["Its coefficients were given: `SoupOfExperts.open(SOUP).instances(coefficients)`."]
    options = ["--method", how.get("method", "?"), "--rule", how["rule"]]
    digest = f" (digest `{found}`)" if isinstance(found := how.get("texts"), str) else ""
    missing = [
        f"`TEXTS`, the user's texts, of which {how.get('num_texts', 'some')} passages were read{digest}",
        "`--max-texts` and `--evaluation-passages`, which chose them",
    ]
    learning = found if isinstance(found := how.get("learning"), dict) else {}
    for key in ("steps", "learning_rate"):
        if key in learning and not (key == "learning_rate" and learning.get("relative")):
            options += [f"--learning-{key.removeprefix('learning_')}", learning[key]]
    if "replay_share" in how:
        options += ["--replay-store", "STORE", "--replay-share", how["replay_share"]]
        missing.append("`STORE`, whose text was replayed")
    if "twin" in (report.get("losses") or {}):
        missing.append("`--compare-with`, the generic twin")
    command = _command("soe specialize", soup.folder.name, "--texts", "TEXTS", *options, "--out", name)
    return [command, f"Not recorded: {'; '.join(missing)}."]


def _blended(name: str, soup: SoupOfExperts, how: dict[str, Any]) -> list[str]:
    shares, of = how["shares"], str(how.get("method")).removeprefix("average-")
    recipes = [f"RECIPE_{number}" for number in range(1, len(shares) + 1)]
    options = ["--shares", *shares, "--of", of, "--soup", soup.folder.name, "--out", name]
    tensors = how["of"] if isinstance(how.get("of"), list) else [None] * len(shares)
    whose = [
        f"`{recipe}` of the tensors `{digest}`" if digest else f"`{recipe}`, whose tensors are not recorded"
        for recipe, digest in zip(recipes, tensors, strict=False)
    ]
    return [_command("soe blend", *recipes, *options), f"It blends {'; '.join(whose)}."]


def _command(command: str, *arguments: Any) -> str:
    return f"It was made with these settings:\n\n```bash\n{command} {shlex.join(map(str, arguments))}\n```"


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
    head = f"Nats per token on {losses['windows']} windows of text that chose nothing (less is better)."
    return ["## Losses", head, "\n".join(["| model | loss |", "|---|---|", *rows])]


def _sureness(texts: dict[str, Any] | None, losses: dict[str, Any], how: dict[str, Any]) -> list[str]:
    if not texts:
        return []
    line = (
        f"{texts['count']} passages chose the domain weights: {texts['domains']} domains, entropy "
        f"{texts['entropy']:.2f} nats, mean distance to their centroids {texts['distance']:.3f} "
        f"(training passages: {texts['training_distance']:.3f})."
    )
    blend = how.get("blend")
    if isinstance(blend, dict) and isinstance(blend.get("share"), int | float):
        line += f" The model has {blend['share']:g} of those weights; the rest is the generic mixture."
    if steps := steps_taken(how):
        line += f" {steps} steps of gradient descent on its texts moved the coefficients from there."
    if "nearest_centroids_interval" in losses:
        low, high = losses["nearest_centroids_interval"]
        line += (
            " Had other passages of the same kind been given, the specialist of their nearest centroids (Algorithm 3) "
            f"would have a loss in {low:.4f} to {high:.4f} (90%)."
        )
    return ["## How sure the domain weights are", line, *texts.get("warnings", [])]


def _domains(soup: SoupOfExperts, recipe: Recipe) -> list[str]:
    if not recipe.domain_weights:
        return []
    words = soup.domain_words
    heaviest = sorted(recipe.domain_weights.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        f"| {domain} | {weight:.4f} | {' '.join(words[domain]) if domain < len(words) else ''} |"
        for domain, weight in heaviest[:DOMAINS_SHOWN]
    ]
    more = len(heaviest) - len(rows)
    note = [f"and {more} domains more." if more > 0 else ""]
    return [
        "## Domain weights",
        "\n".join(["| domain | weight | words |", "|---|---|---|", *rows]),
        *filter(None, note),
    ]
