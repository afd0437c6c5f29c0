"""What `soe specialize` shows of a specialist that was made."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from soe_model.specialists.gain import gain_line
from soe_model.specialists.model_card import LOSSES
from soe_model.specialists.refining import steps_taken
from storage_schema.manifest import Manifest


def show(folder: Path, manifest: Manifest, console: Console | None = None) -> None:
    """Print the losses, how sure the domain weights are, and what to do next."""
    console = console or Console(highlight=False, soft_wrap=True)
    losses = manifest.counts.get("losses")
    if losses:
        table = Table(
            title=f"Loss on {losses['windows']} held-out windows, nats per token", box=None, pad_edge=False
        )
        table.add_column("model")
        table.add_column("loss", justify="right")
        for key, name in LOSSES.items():
            if key in losses:
                table.add_row(name.replace("**", ""), f"{losses[key]:.4f}")
        console.print(table)
    else:
        console.print("Too few texts to keep some apart and measure on: no losses.")
    console.print(gain_line(manifest.configuration, manifest.counts), style="bold")
    sure = manifest.counts["texts"]
    console.print(
        f"{sure['count']} passages fall into {sure['domains']} domains (entropy {sure['entropy']:.2f} nats), "
        f"{sure['distance']:.3f} from the centroids; training passages are {sure['training_distance']:.3f} from theirs."
    )
    if blend := manifest.configuration.get("blend"):
        console.print(
            f"The model's domain weights: {blend['share']:g} of those, the rest the generic mixture."
        )
    if steps := steps_taken(manifest.configuration):
        console.print(f"{steps} steps of gradient descent moved the coefficients from there.")
    if losses and "nearest_centroids_interval" in losses:
        low, high = losses["nearest_centroids_interval"]
        console.print(
            f"With other passages of the same kind Algorithm 3's loss would lie in {low:.4f} to {high:.4f} (90%)."
        )
    for note in sure.get("notes", []):
        console.print(note)
    for warning in sure.get("warnings", []):
        console.print(f"warning: {warning}", style="yellow")
    console.print(f"The model is in {folder}; AutoModelForCausalLM and AutoTokenizer load it.", style="bold")
