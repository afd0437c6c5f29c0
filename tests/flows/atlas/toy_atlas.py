"""What the atlas page is tested with: hostile text, and specialists of given domain weights."""

from __future__ import annotations

from storage_schema.stage import open_stage

HOSTILE = (
    '</script><img src="http://127.0.0.1:9/x" onerror="document.title=\'taken\'"><b>bold</b> <!-- <script>'
)


def make_specialist(folder, weights: dict[int, float], soup: str = "s" * 64) -> None:
    recipe = {
        "domain_weights": {str(i): h for i, h in weights.items()},
        "coefficients": [0.5],
        "rule": "flat",
    }
    open_stage(folder, kind="specialist", configuration=recipe, inputs={"soup": soup}).finish({})
