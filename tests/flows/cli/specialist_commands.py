"""The commands for specialists as one would type them, in this process."""

from __future__ import annotations

from safetensors.torch import load_file

from flows.cli import main as cli

ALGORITHM_3 = "--method", "nearest-centroids"


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def tensors(folder):
    return load_file(folder / "model.safetensors")
