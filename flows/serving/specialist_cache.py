"""Makes specialists of texts, keeps their recipes on disk, and the last few models in memory.

Only the worker of :class:`flows.serving.compute_queue.ComputeQueue` calls the methods that compute.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flows.reporting.progress import silent
from flows.serving.domain_map import DomainMap
from flows.serving.generation import positions_of
from flows.serving.limits import Limits, Refused
from flows.serving.recipe_store import RecipeBox
from flows.specialists.maker import Made, SpecialistMaker
from flows.specialists.methods import BLENDED, Method
from pipeline.specialists.sets import LEAST_TO_SPLIT, SpecialistSet, set_of_texts
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.gain import gain_line, gain_of, is_generic
from soe_model.specialists.recipe import instance_of, recipe_of, tensors_digest
from soe_model.specialists.refining import steps_taken
from soe_model.specialists.specialist_files import write_specialist
from storage_schema.errors import UserError
from storage_schema.manifest import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.tokenizer import TextTokenizer

GENERIC = "generic"
"""The model name of the generic mixture's instance."""


class Specialists:
    """A soup, and the specialists that were made of it.

    Args:
        cache: so many models stay in memory, besides the generic one; others are made again from their recipes.
        method: of making specialists. `refined` takes each text for a document; a person pastes paragraphs of one.
    """

    def __init__(
        self,
        soup: SoupOfExperts,
        *,
        cache: int = 4,
        limits: Limits | None = None,
        method: str = BLENDED,
    ):
        if cache < 1:
            raise UserError(f"cache is {cache}; at least 1 model is kept.")
        self.soup, self.cache, self.limits = soup, cache, limits or Limits()
        self.method = Method(name=method, bootstrap=0)
        self.maker = SpecialistMaker(soup, show=silent)
        self.box = RecipeBox(soup.digest, soup.folder.name)
        self.map = DomainMap(soup)
        self._models: OrderedDict[str, PreTrainedModel] = OrderedDict()

    @property
    def tokenizer(self) -> TextTokenizer:
        return self.maker.meter.tokenizer

    def warm_up(self) -> None:
        """Load the embedder and make the generic instance, so that the first request does not wait for them."""
        self.maker.assign(["warm up"])
        self.model(GENERIC)

    def make(self, texts: Sequence[str], check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Make a specialist of the texts; returns its description, as :meth:`describe` does.

        Raises :class:`Refused` (400) if the texts have no passage, or a passage has no embedding.
        """
        try:
            with self.box.work() as folder:
                try:
                    one = _set_of(texts, folder, max_texts=self.limits.passages)
                finally:
                    shutil.rmtree(folder)
            check()
            [made] = self.maker.make([one], self.method, check=check)
        except UserError as error:
            raise Refused(400, str(error), code="unusable_texts", param="texts") from error
        return self.describe(self._keep(made))

    def describe(self, name: str) -> dict[str, Any]:
        """A specialist as JSON: id, where its texts fall, gain, losses or why there are none, warnings, recipe."""
        manifest = self.box.manifest(name)
        counts, fallen = manifest.counts, self.fallen(manifest)
        gain = gain_of(manifest.configuration, counts)
        generic = is_generic(manifest.configuration)
        sure = counts.get("texts", {})
        few = f"Fewer than {LEAST_TO_SPLIT} passages: none could be kept apart to measure on, so there are no losses."
        return {
            "id": name,
            "domains": self.map.rows(fallen),
            "position": self.map.centre(fallen),
            "share": manifest.configuration.get("blend", {}).get("share"),
            "steps": steps_taken(manifest.configuration),
            "gains": gain is not None and gain.sure and not generic,
            "gain": gain_line(manifest.configuration, counts),
            "texts": {key: value for key, value in sure.items() if key not in ("warnings", "in_domains")},
            "warnings": sure.get("warnings", []),
            "losses": counts.get("losses"),
            "no_losses_because": None if "losses" in counts else few,
            "parameters": counts["parameters"],
            "recipe": json.loads(manifest.to_json()),
        }

    def fallen(self, manifest: Manifest) -> dict[int, float]:
        """Domain → share of the texts that fall into it; the domain weights where an older release did not note it."""
        texts = manifest.counts.get("texts", {}).get("in_domains", {})
        number = sum(texts.values())
        if not number:
            return recipe_of(manifest).domain_weights or {}
        return {int(domain): count / number for domain, count in texts.items()}

    def model(self, name: str) -> PreTrainedModel:
        """The model of an id, or the generic one. Raises :class:`Refused` (404) for an unknown id."""
        if name == GENERIC:
            meter = self.maker.meter
            if meter.generic is None:
                meter.generic = self.soup.model(self.soup.instances(meter.generic_N[None])[0])
            return meter.generic
        if name in self._models:
            self._models.move_to_end(name)
            return self._models[name]
        return self._remember(name, instance_of(self.box.recipe(name), self.soup))

    @property
    def positions(self) -> int:
        """How many tokens a model of this soup can hold, prompt and completion together."""
        return positions_of(self.model(GENERIC))

    def archive(self, name: str, check: Callable[[], None] = lambda: None) -> Path:
        """A zip of the specialist's Hugging Face directory, in a work folder that the caller deletes."""
        manifest = self.box.manifest(name)
        recipe = recipe_of(manifest)
        title = f"specialist-{name}"
        with self.box.work() as folder:
            counts = manifest.counts
            report: dict[str, Any] = {key: counts[key] for key in ("texts", "losses") if key in counts}
            write_specialist(
                self.soup, folder / title, recipe, instance_of(recipe, self.soup), report=report, replace=None
            )
            # Not compressed: float weights would hardly shrink, and that would take a minute per gigabyte.
            with zipfile.ZipFile(folder / f"{title}.zip", "w", zipfile.ZIP_STORED) as archive:
                for path in sorted((folder / title).iterdir()):
                    archive.write(path, f"{title}/{path.name}")
            shutil.rmtree(folder / title)
            check()
            return folder / f"{title}.zip"

    def _keep(self, made: Made) -> str:
        counts = {
            "parameters": len(made.instance_P),
            "tensors": tensors_digest(unflatten(made.instance_P, self.soup.layout)),
            **made.report,
        }
        name = self.box.put(made.recipe, counts)
        self._remember(name, made.instance_P)
        return name

    def _remember(self, name: str, instance_P: torch.Tensor) -> PreTrainedModel:
        self._models[name] = self.soup.model(instance_P)
        self._models.move_to_end(name)
        while len(self._models) > self.cache:
            self._models.popitem(last=False)
        return self._models[name]


def _set_of(texts: Sequence[str], folder: Path, *, max_texts: int) -> SpecialistSet:
    """The texts as `soe specialize` reads them from a file: cut into passages without doubles, a fifth held out."""
    if not any(text.strip() for text in texts):
        raise Refused(
            400, "There is no text. Give at least one that is not empty.", code="no_text", param="texts"
        )
    file = folder / "texts.jsonl"
    with open(file, "w", encoding="utf-8") as opened:
        opened.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return set_of_texts("given", str(file), max_texts=max_texts, evaluation_passages=None)
