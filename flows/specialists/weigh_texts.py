"""Where texts fall among a store's domains, as a table of one mixture.

What CRISP trains one model on (``meta_distribution=fixed``), and what ``soe score`` compares with other mixtures.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.embedder import reload_embedder
from pipeline.mixtures.ratios import write_fixed
from pipeline.specialists.domain_weights import Rule, assign_to_domains
from pipeline.specialists.sets import set_of_texts
from storage_schema.domains import DomainStore
from storage_schema.layout import store_folder
from storage_schema.manifest import read_manifest


def write_domain_weights(
    store: str, texts: str, out: str | Path, *, rule: Rule = "flat", max_texts: int = 200, **fields: str
) -> dict[str, Any]:
    """Algorithm 3's domain weights of some texts, written as a ratios.csv of one row.

    Args:
        store: name or path, on this machine.
        texts: file or folder.
        fields: ``text_field`` and ``source_field`` of the texts.

    Returns:
        How sure they are (:meth:`pipeline.specialists.domain_weights.Assignment.describe`).

    Raises:
        ValueError: no text there, or an embedder that cannot be found or loaded.
        StoreError: no finished store, or an embedder of other weights than it was built with.
    """
    opened = DomainStore(store_folder(store))
    one = set_of_texts("texts", texts, max_texts=max_texts, evaluation_passages=0, **fields)
    embeddings = read_manifest(opened.folder.parent / "embeddings", "embeddings")
    _, embedder = reload_embedder(embeddings.configuration, embeddings.inputs["model"])
    assignment = assign_to_domains(embed_texts(embedder, one.texts), opened.tree, rule=rule)
    row = re.sub(r"[^\w .-]", "-", Path(out).stem)  # a comma or a quote would end the cell
    write_fixed(assignment.domain_weights, out, run=row)
    return assignment.describe() | {"notes": one.notes}
