"""A specialist's model card says what the recipe and the measurements say, and nothing that nobody recorded."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import typer

from flows.cli import specialist_commands
from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.averaging import blend
from soe_model.specialists.model_card import model_card
from soe_model.specialists.recipe import BLEND_COEFFICIENTS
from tests.soe_model.toy_soup import WEIGHTS, recipes_for

WORDS = [["zero"], ["one"], ["two", "deux"], ["three"], ["four"]]
LEARNING = {"steps": 40, "learning_rate": 0.0123456789, "batch_size": 8}
HOW = {"method": "nearest-centroids", "rule": "tree", "num_texts": 20}
REPORT = {
    "parameters": 12345,
    "tensors": "cd" * 32,
    "texts": {
        "count": 20, "domains": 2, "entropy": 0.69, "distance": 0.5, "training_distance": 0.4,
        "warnings": ["Only 20 texts."],
    },
    "losses": {"windows": 7, "generic_instance": 2.0, "nearest_centroids": 1.75, "made": 1.5,
               "twin": 1.9, "gain_interval": [0.25, 0.75],
               "nearest_centroids_interval": [1.25, 1.75]},
}  # fmt: skip


@pytest.fixture
def soup(made, tmp_path):
    """With words for its domains."""
    shutil.copytree(made[0], tmp_path / "soup")
    (tmp_path / "soup/domain-words.json").write_text(json.dumps(WORDS))
    return SoupOfExperts.open(tmp_path / "soup")


def recipe(soup, how=HOW):
    return replace(recipes_for(soup, WEIGHTS[1:])[0], how=how)


def command(card):
    """The first command of the card, as `soe` understands it."""
    [line, *_] = re.findall(r"```bash\nsoe (.*)\n", card)
    name, *words = shlex.split(line)
    known = typer.main.get_command(specialist_commands.app).commands[name]
    return line, SimpleNamespace(**known.make_context(name, words).params)


def test_a_relative_rate_is_the_commands_own(soup):
    """`--learning-rate` is absolute."""
    how = HOW | {
        "method": "learned-coefficients",
        "learning": LEARNING | {"learning_rate": 0.1, "relative": True},
    }
    given = command(model_card("notes", soup, recipe(soup, how), REPORT))[1]
    assert (given.learning_steps, given.learning_rate) == (40, None)


def test_the_card_has_tags_digests_domains_coefficients_and_losses(soup):
    one = recipe(soup)
    card = model_card("notes", soup, one, REPORT)
    assert 'base_model: "soup"' in card and "tags: [soup-of-experts, merge]" in card
    assert f"Soup `{soup.digest}`; tensors `{'cd' * 32}`" in card and "12,345 parameters" in card
    table = re.findall(r"\| (\d) \| (0\.\d{4}) \| (.*) \|", card)
    assert table == [("4", "0.5000", "four"), ("2", "0.2500", "two deux"), ("3", "0.2500", "three")]
    assert f"```json\n{json.dumps(list(one.coefficients))}\n```" in card
    assert "| **this specialist** | 1.5000 |" in card and "| generic twin | 1.9000 |" in card
    assert "**Gain: +0.5000 nats per token over the generic instance (90%: +0.2500 to +0.7500)" in card
    assert "Only 20 texts." in card


def test_the_interval_is_said_to_be_of_algorithm_3(soup):
    card = model_card("notes", soup, recipe(soup, HOW | {"method": "learned-coefficients"}), REPORT)
    assert (
        "the specialist of their nearest centroids (Algorithm 3) would have a loss in 1.2500 to 1.7500"
        in card
    )


def test_the_command_has_the_settings_and_what_is_not_recorded_is_named(soup):
    how = HOW | {"method": "learned-coefficients", "learning": LEARNING}
    card = model_card("my notes", soup, recipe(soup, how), REPORT)
    line, given = command(card)
    assert (given.soup, given.out, given.method, given.rule) == ("soup", "my notes", how["method"], "tree")
    assert (given.learning_steps, given.learning_rate) == (40, LEARNING["learning_rate"])
    for option in ("--max-texts", "--evaluation-passages", "--compare-with"):
        assert option not in line and option in card.split("Not recorded: ")[1]
    assert "`TEXTS`, the user's texts, of which 20 passages were read" in card
    assert "--compare-with" not in model_card("n", soup, recipe(soup), REPORT | {"losses": None})


def test_a_fine_tuned_specialist_is_not_said_to_be_rebuilt(soup):
    how = HOW | {"method": "fine-tuned", "learning": LEARNING, "replay_share": 0.3}
    card = model_card("notes", soup, recipe(soup, how), REPORT)
    assert command(card)[1].replay_share == 0.3 and "`STORE`, whose text was replayed" in card
    assert "keep its `model.safetensors`" in card and "soe materialize" not in card


def test_a_blend_names_its_parts_and_exact_shares(soup):
    parts = [replace(one, tensors=mark * 64) for one, mark in zip(recipes_for(soup), "ab", strict=True)]
    blended = blend(parts, [1, 2], soup, of=BLEND_COEFFICIENTS)
    card = model_card("both", soup, blended, {"parameters": 1, "tensors": "c"})
    given = command(card)[1]
    assert given.shares == [1 / 3, 2 / 3] and given.of == "coefficients" and len(given.recipes) == 2
    assert f"`RECIPE_1` of the tensors `{'a' * 64}`; `RECIPE_2` of the tensors `{'b' * 64}`" in card
    assert "## Domain weights" not in card


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"rule": "flat"},
        HOW | {"learning": {"steps": 3}},
        HOW | {"learning": {}},
        HOW | {"learning": "much"},
        {"shares": [0.5, 0.5]},
        {"shares": 1, "method": "by hand"},
    ],
)
def test_a_recipe_that_says_less_has_a_card_too(soup, how):
    card = model_card("notes", soup, recipe(soup, how), {"parameters": 1, "tensors": "c"})
    assert "soe materialize" in card and ("--learning-steps 3" in card) == (
        how.get("learning") == {"steps": 3}
    )
    assert "--learning-rate" not in card


def test_domains_without_words_have_an_empty_cell(soup):
    (soup.folder / "domain-words.json").write_text('[["zero"], [], ["two"]]')
    card = model_card("notes", soup, recipe(soup), {"parameters": 1, "tensors": "c"})
    assert "| 2 | 0.2500 | two |" in card and "| 4 | 0.5000 |  |" in card
