"""The answer in words, and the page in headless Chromium."""

from __future__ import annotations

import pytest

from flows.comparison.fine_tuning import LEARNING
from flows.comparison.report.page import page, seconds, short, write_page
from flows.comparison.report.results import answer, collect
from flows.comparison.sets import MeasuredSet
from flows.settings import CompareMethods
from tests.extras import chromium, screenshot
from tests.flows.comparison import toy

TENSORS = "weights_K", "choosing_nL1", "evaluation_nL1"
HOSTILE = "</script><b>bold</b>"


def cell(method: str, seed: int, first: float, *, flops: float, each: float = 0.0, **more):
    """A finished cell of two points, with losses of three sets; the first point is 0.5 worse."""
    losses = {"first": first, "second": first + 0.2, "generic mixture": first + 0.1}
    if more.get("anew"):
        del losses["generic mixture"]
    point = {"tokens": 800, "seconds": 8.0, "losses": losses}
    before = point | {"tokens": 400, "seconds": 4.0, "losses": {n: loss + 0.5 for n, loss in losses.items()}}
    tuned = {
        name: {"tokens": 96, "window_losses": [loss - 0.3]}
        for name, loss in losses.items()
        if "mix" not in name
    }
    cost = {"pretrained_size": 2_000_000, "specialist_size": 1_000_000, "pretraining_flops": flops}
    return {
        "method": method, "seed": seed, "status": "finished", "said": "", "anew": False, "points": [before, point],
        "cost": cost | {"specialist_flops": each}, "all_flops": flops, "seconds_to_specialist": 0.0123,
        "seconds_per_token": 1e-4, "fine_tuned": {"said": "", "points": [{"tokens": 96, "sets": tuned}]},
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    store = toy.toy_store(tmp_path_factory.mktemp("stores"))
    cells = [
        cell("soup", 0, 3.0, flops=9e9, each=1e6),
        cell("soup", 1, 3.1, flops=9e9, each=1e6),
        cell("generic", 0, 3.4, flops=3e9),
        cell("generic", 1, 3.42, flops=3e9),
        cell("crisp", 0, 2.4, flops=0, each=2e9, anew=True),
        cell("crisp", 1, 2.42, flops=0, each=2e9, anew=True),
        {"method": "pareto", "seed": 0, "status": "diverged", "said": f"step 3: loss nan {HOSTILE}"},
        {"method": "pareto", "seed": 1, "status": "failed", "said": "out of memory"},
    ]
    chosen = CompareMethods(store="mine", seeds=[0, 1]).of_size()
    ranked = {"spearman": 0.8, "error": 0.1, "by_set": [0.7, 0.9], "regret": 0.01, "mean_regret": 0.3}
    surface = {
        "mixtures": [0, 1, 3], "of": 4, "sets": ["first", HOSTILE], "trained": [[3.0, 3.1, 3.4], [2.0, 2.2, 2.1]],
        "predicted": {"soup": [[3.1, 3.2, 3.3], [2.0, None, 2.1]]}, "seeds_agree": 0.9,
        "ranked": [{"method": "soup"} | ranked, {"method": "embeddings alone"} | ranked | {"spearman": 0.4}],
    }  # fmt: skip
    return collect(chosen, toy.toy_sets(store), cells, tokens=800, digest="d" * 64) | {
        "surface": surface,
        "by_number": {
            "few-texts": {
                "title": "Loss by the number of texts", "said": HOSTILE, "number": "texts",
                "curves": {"soup": [{"at": n, "mean": 3.5 - n / 500, "sd": 0.1 / n} for n in (1, 10, 200)]},
                "flat": {"generic": {"mean": 3.4, "sd": None}},
            },
        },
    }  # fmt: skip


def test_the_answer_says_which_is_best_and_from_how_many_on_a_soup_pays(report):
    seen, unseen, from_how_many, seeds = report["answer"]
    assert seen.startswith(
        "On 1 seen set the lowest mean loss is that of crisp (2.410 ± 0.014), then soup (3.050"
    )
    assert "generic (3.610" in unseen
    assert from_how_many.startswith("With more than 4 specialists a soup costs less than CRISP")  # 9e9 / 2e9
    assert from_how_many.endswith("minus that of CRISP's: +0.640 on seen sets, +0.640 on unseen sets.")
    assert seeds.startswith("With 2 seeds")


def test_the_answer_says_that_a_model_is_larger():
    rows = [
        {
            "method": method,
            "losses": {"seen": {"mean": loss, "sd": None, "by_seed": dict.fromkeys(range(3), loss)}},
            "served": served,
            "seeds": 3,
        }
        for method, loss, served in (("generic:larger", 2.0, 320), ("soup", 2.5, 100), ("generic", 3.0, 100))
    ]
    [said] = answer(rows, [MeasuredSet(name="a", kind="seen", **dict.fromkeys(TENSORS))])
    assert "generic:larger (2.000, 3.2 times the parameters), then soup (2.500); generic (3.000)." in said
    rows[0] |= {"method": "generic:half", "served": 50}
    [said] = answer(rows, [MeasuredSet(name="a", kind="seen", **dict.fromkeys(TENSORS))])
    assert "generic:half (2.000, 0.5 times the parameters), then soup (2.500); generic (3.000)." in said


def test_the_answer_sets_a_soup_beside_another_method_and_not_beside_itself():
    losses = {"soup-refined": 2.0, "soup-blended": 2.1, "soup": 2.2, "crisp": 2.3, "generic": 3.0}
    rows = [
        {
            "method": method,
            "losses": {"seen": {"mean": loss, "sd": None, "by_seed": dict.fromkeys(range(3), loss)}},
            "served": 100,
            "seeds": 3,
            "specialist_flops": 1.0,
            "once_flops": 2.0,
        }
        for method, loss in losses.items()
    ]
    said = answer(rows, [MeasuredSet(name="a", kind="seen", **dict.fromkeys(TENSORS))])[0]
    assert said.endswith(
        "is that of soup-refined (2.000), then crisp (2.300); soup (2.200), generic (3.000)."
    )


def test_a_spread_is_that_of_the_seeds(report):
    [soup] = [row for row in report["rows"] if row["method"] == "soup"]
    assert soup["losses"]["seen"]["mean"] == pytest.approx(3.05)
    assert soup["losses"]["seen"]["sd"] == pytest.approx(0.1 / 2**0.5)
    assert [point["loss"]["mean"] for point in soup["curve"]] == pytest.approx([3.65, 3.15])
    assert "far" not in soup["losses"]


def test_the_command_repeats_the_tokens_and_not_the_hours(report):
    assert '"tokens": 800' in report["repeat"] and "hours" not in report["repeat"]


def test_the_page_holds_all_and_asks_no_one(report):
    html = page(report)
    assert HOSTILE not in html and "step 3: loss nan &lt;/script&gt;" in html
    assert '<td class="best">2.410' in html and "2 M each" in html
    assert "soup 0.80 ± 0.10, first 0.010 nats above the best; embeddings alone 0.40 ± 0.10" in html
    assert "src=" not in html.split("<script>")[0] and "{{" not in html.split("<script>")[0]


@pytest.mark.parametrize(
    ("without", "chart"), [({"surface": None}, "surface"), ({"by_number": {}}, "by-few-texts")]
)
def test_what_was_not_asked_has_no_chart(report, without, chart):
    assert f'id="{chart}"' in page(report) and f'id="{chart}"' not in page(report | without)


def test_the_section_of_fine_tuning_is_there_where_something_was(report):
    assert (
        "generic does not reach the loss of the soup before its fine-tuning (3.150) with 96 tokens"
        in page(report)
    )
    assert f"at most {LEARNING.steps} steps" in page(report)
    assert 'id="fine-tuning"' not in page(report | {"fine_tuning": []})


def test_notes_on_texts_and_the_sentences_of_the_figures_are_shown(report):
    sets = [one | {"notes": [f"{HOSTILE} 3 files were not read."]} for one in report["sets"][:1]]
    sentences = [{"figure": "Figure 4", "verdict": "as in the paper", "said": f"Figure 4: {HOSTILE}."}]
    html = page(report | {"sets": sets, "figures": sentences})
    assert HOSTILE not in html and "first: &lt;/script&gt;" in html and "3 files were not read." in html
    assert '<li class="there">Figure 4: &lt;/script&gt;' in html
    assert 'class="texts"' not in page(report) and 'class="figures"' not in page(report)


@pytest.mark.parametrize(("number", "said"), [(1_234_567, "1.23 M"), (800, "800"), (2e9, "2 G")])
def test_short_numbers(number, said):
    assert short(number) == said


def test_times():
    assert [seconds(number) for number in (0.0123, 3.21, 310)] == ["12.3 ms", "3.21 s", "0:05:10"]


def test_it_is_readable_on_a_laptop_and_on_a_phone(report, tmp_path):
    path = tmp_path / "comparison.html"
    write_page(path, report)
    with chromium() as browser:
        for name, width in (("laptop", 1440), ("phone", 390)):
            opened = browser.new_page(viewport={"width": width, "height": 900})
            problems, asked = [], []
            opened.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
            opened.on("console", lambda message, problems=problems: problems.append(message.text))
            opened.on("request", lambda request, asked=asked: asked.append(request.url))
            opened.goto(path.as_uri())
            opened.wait_for_selector("body[data-ready]", timeout=60_000)
            screenshot(opened, f"comparison-{name}", full_page=True)
            assert (problems, asked) == ([], [path.as_uri()])
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.locator("#tokens .legendtext").all_text_contents() == ["soup", "generic", "crisp"]
            assert opened.locator("#fine-tuning .legendtext").all_text_contents() == [
                "soup",
                "generic",
                "crisp",
            ]
            assert opened.locator("tbody tr").count() == 4
            assert opened.locator("#surface .scatterlayer .point").count() == 5
            assert opened.locator("#by-few-texts .scatterlayer .point").count() == 3


def test_of_many_methods_variants_wait_for_a_click(report, tmp_path):
    """13 methods have more lines than there are colours."""
    soup = report["rows"][0]
    many = [soup | {"method": f"soup:{number}"} for number in range(12)]
    write_page(tmp_path / "many.html", report | {"rows": [soup, *many]})
    with chromium() as browser:
        opened = browser.new_page(viewport={"width": 1440, "height": 900})
        opened.goto((tmp_path / "many.html").as_uri())
        opened.wait_for_selector("body[data-ready]", timeout=60_000)
        assert opened.locator("#tokens .legendtext").count() == 13
        assert opened.locator("#tokens .scatterlayer .trace").count() == 1
        assert opened.evaluate("document.getElementById('tokens').layout.xaxis.type") == "log"
