"""What `soe serve` answers."""

from __future__ import annotations

import io
import json
import threading
import zipfile

import pytest
import torch

from flows.serving import recipe_store as recipe_box
from flows.serving.generation import TextStream
from flows.serving.limits import Refused
from flows.serving.recipe_store import RecipeBox
from flows.serving.specialist_cache import Specialists
from pipeline.tokenizer import load_tokenizer
from soe_model.specialists.recipe import instance_of, make_recipe, read_recipe
from soe_model.specialists.specialist_files import materialize
from tests.served_soup import TOPICS, sentences


def test_where_texts_fall_and_what_the_specialist_is_worth(made, client):
    assert [row["domain"] for row in made["domains"]] == [0, 3]
    assert sum(row["weight"] for row in made["domains"]) == pytest.approx(1) and made["texts"]["count"] == 13
    assert made["domains"][0]["words"][0] == "cooking" and len(made["position"]) == 2
    assert made["losses"].keys() >= {"made", "generic_instance", "windows"} and not made["no_losses_because"]
    assert "over the generic instance" in made["gain"] and made["share"] is None
    assert any("Only 13 texts" in warning for warning in made["warnings"])
    few = client.post("/api/specialists", json={"texts": sentences("music", 9)}).json()
    assert few["losses"] is None and "Fewer than 10 passages" in few["no_losses_because"]
    assert [row["domain"] for row in few["domains"]] == [7]
    far = client.post("/api/specialists", json={"texts": "zxqv 0x7f 0x3a ; ; ; {{{ }}} %%% 8812 4471"}).json()
    assert any("far from every domain" in warning for warning in far["warnings"])
    listed = client.get("/api/specialists").json()
    assert {made["id"], few["id"], far["id"]} <= {one["id"] for one in listed["specialists"]}
    assert client.get(f"/api/specialists/{made['id']}").json() == made


def test_by_itself_the_service_goes_as_far_as_helps_and_says_what_that_gains(soup, made):
    """Random experts help nobody: what is made is the generic instance, wherever the texts fall."""
    by_itself = Specialists(soup)
    shown = by_itself.make([*sentences("cooking", 12), *sentences("law", 4)])
    assert shown["share"] == 0 and not shown["gains"] and shown["domains"] == made["domains"]
    assert shown["gain"].startswith("No gain: use the generic model, which this is")
    assert shown["losses"]["made"] == shown["losses"]["generic_instance"]
    assert by_itself.box.recipe(shown["id"]).how["blend"]["units"] == 13


def test_a_refined_specialist_says_how_many_steps_it_took(soup):
    refined = Specialists(soup, method="refined")
    shown = refined.make([*sentences("cooking", 12), *sentences("law", 4)])
    how = refined.box.recipe(shown["id"]).how
    assert how["method"] == "refined" and shown["steps"] == how["refined"]["steps"]


def test_a_recipe_of_an_older_release_is_shown_by_its_domain_weights(made, specialists):
    recipe = specialists.box.recipe(made["id"])
    how = {key: value for key, value in recipe.how.items() if key != "blend"} | {
        "method": "nearest-centroids"
    }
    weights = torch.eye(8)[3]
    [coefficients] = specialists.soup.coefficients(weights[None])
    old = make_recipe(specialists.soup, coefficients_N=coefficients, domain_weights_K=weights, how=how)
    counts = made["recipe"]["counts"]
    texts = {key: value for key, value in counts["texts"].items() if key != "in_domains"}
    shown = specialists.describe(specialists.box.put(old, counts | {"texts": texts}))
    assert [row["domain"] for row in shown["domains"]] == [3] and shown["share"] is None


def test_the_same_texts_give_the_same_specialist_in_any_order_of_requests(made, client):
    client.post("/api/specialists", json={"texts": sentences("sailing", 3)})
    again = client.post("/api/specialists", json={"texts": [*sentences("cooking", 12), *sentences("law", 4)]})
    assert again.json() == made


def test_a_recipe_is_enough_to_make_the_model_again(made, soup, home, tmp_path):
    file = tmp_path / "specialist.json"
    file.write_text(json.dumps(made["recipe"]))
    kept = home / "served" / "topics" / f"{made['id']}.json"
    assert json.loads(kept.read_text()) == made["recipe"]
    manifest = materialize(read_recipe(file), soup, tmp_path / "again")
    assert manifest.counts["tensors"] == made["recipe"]["counts"]["tensors"]


def test_models_are_kept_up_to_the_bound_and_made_again_alike(made, client, specialists):
    others = [client.post("/api/specialists", json={"texts": sentences(t, 3)}).json()["id"] for t in TOPICS]
    assert made["id"] not in specialists._models and len(specialists._models) == 2
    model = specialists.model(others[0])
    assert specialists.model(others[0]) is model and len(specialists._models) == 2
    expected = instance_of(specialists.box.recipe(made["id"]), specialists.soup)
    found = torch.nn.utils.parameters_to_vector(specialists.model(made["id"]).parameters())
    assert torch.equal(found.sort().values, expected.sort().values)


def test_recipes_outlast_the_service_and_stay_with_their_soup(made, soup, home):
    again = Specialists(soup)
    assert made["id"] in dict(again.box.ids()) and again.describe(made["id"]) == made
    other = RecipeBox("0" * 64, "topics")
    assert not other.ids()
    with pytest.raises(Refused, match="There is no specialist"):
        other.recipe(made["id"])


def test_the_zip_is_a_model_that_writes_the_same(made, client, home, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answer = client.get(f"/api/specialists/{made['id']}.zip")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / f"specialist-{made['id']}"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    spelt = "the text <|endoftext|> stays text"
    [trained_on] = load_tokenizer(folder).encode([spelt])
    assert tokenizer(spelt).input_ids == trained_on[:-1].tolist()
    prompt = "simmer the onion"
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        wrote = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    both = client.post("/api/generate", json={"id": made["id"], "prompt": prompt, "max_tokens": 20}).json()
    assert both["specialist"]["text"] == tokenizer.decode(wrote, skip_special_tokens=True)
    assert both["generic"]["text"] != both["specialist"]["text"]
    assert not list((home / "served" / "topics").glob(".work-*"))


@pytest.mark.parametrize("stop", [(), (" 日",), ("zzz", "😀 b"), ("n",)])
def test_streamed_pieces_are_whole_and_never_show_a_stop(soup, stop):
    tokenizer = load_tokenizer(soup.folder / "tokenizer.json")
    text = "naïve — 日本 😀😀 bé end"
    pieces: list[str] = []
    stream = TextStream(tokenizer, stop, pieces.append)
    for token in tokenizer.tokenizer.encode(text).ids:
        stream.feed(token)
    stream.finish()
    expected = min((text.partition(one)[0] for one in stop), key=len, default=text)
    assert "".join(pieces) == stream.text == expected
    assert all("\ufffd" not in piece for piece in pieces) and (stop or len(pieces) > 5)


def test_recipes_that_a_user_deletes_are_gone(soup, tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    monkeypatch.setattr(recipe_box, "MOST_RECIPES", 2)
    specialists = Specialists(soup)
    made = [specialists.make(sentences(topic, 3))["id"] for topic in ("law", "music")]
    with pytest.raises(Refused, match="2 recipes are kept already; delete some"):
        specialists.make(sentences("sailing", 3))
    (specialists.box.folder / f"{made[0]}.json").unlink()
    assert [name for name, _ in specialists.box.ids()] == made[1:]
    specialists.make(sentences("sailing", 3))


def test_a_recipe_that_is_put_while_the_folder_is_listed_is_kept(made, specialists, tmp_path, monkeypatch):
    """Listing takes what has no file for deleted; it looked at the files first, and then at the ids of now."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    recipe = specialists.box.recipe(made["id"])
    box = RecipeBox(recipe.soup, "topics")
    putting = threading.Thread(target=lambda: box.put(recipe, {"tensors": recipe.tensors}))

    class Folder(type(box.folder)):
        def glob(self, pattern):
            found = list(super().glob(pattern))
            if not putting.ident:
                putting.start()
                putting.join(0.3)  # for ever, if it waits for the list
            return found

    box.folder = Folder(box.folder)
    box.ids()
    putting.join(20)
    assert box.recipe(made["id"]) == recipe and [name for name, _ in box.ids()] == [made["id"]]


def test_what_another_service_of_the_soup_made_is_found(made, specialists, tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    recipe = specialists.box.recipe(made["id"])
    box, other = RecipeBox(recipe.soup, "topics"), RecipeBox("0" * 64, "topics")
    RecipeBox(recipe.soup, "topics").put(recipe, {"tensors": recipe.tensors})
    assert box.recipe(made["id"]) == recipe
    with pytest.raises(Refused, match="no specialist"):
        other.recipe(made["id"])
