"""A specialist in git through Git-Theta's update type `soup`, with real git, git-lfs and git-theta."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from soe_model.specialists.specialist_files import MODEL
from soe_model.specialists.verification import verify_specialist
from tests.extras import needs, needs_program
from tests.soe_model.wide_soup import write_wide_soup

pytestmark = pytest.mark.xdist_group("git-theta")  # the repository is made once
SOUP_UPDATE = ("--update-type", "soup", "--update-data", "specialist.json")


class Git:
    """git in one folder, with a configuration of its own."""

    def __init__(self, folder: Path, home: Path):
        self.folder = folder
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "SOE_SOUP"))
        }
        self.environment = kept | {
            "HOME": str(home),  # where Git-Theta writes its filters, whatever GIT_CONFIG_GLOBAL says
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
            "GIT_THETA_CHECKPOINT_TYPE": "transformers",
            "TMPDIR": str(home),  # Git-Theta's log
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def __call__(self, *arguments, fails=False, **environment) -> str:
        start = time.monotonic()
        done = subprocess.run(
            ["git", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        print(f"{time.monotonic() - start:5.1f} s  git {' '.join(map(str, arguments[:2]))}")
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tracked(wide):
    """git in a repository that tracks the specialist and has pushed it to ``remote.git`` beside it."""
    needs("git_theta", extra="git-theta")
    needs_program("git-lfs")
    home, work = wide.folder / "home", wide.folder / "work"
    home.mkdir()
    shutil.copytree(wide.folder / "specialist", work)
    git = Git(work, home)
    git("init", "-q", "-b", "main")
    soup = wide.folder / "soup"
    for name, value in (("user.name", "A"), ("user.email", "a@localhost"), ("soe.soup", soup)):
        git("config", "--global", name, value)
    git("theta", "install")
    git("theta", "track", MODEL)
    git("theta", "add", MODEL, *SOUP_UPDATE)
    git("add", ".")
    git("commit", "-q", "-m", "A specialist")
    git("init", "-q", "--bare", "-b", "main", wide.folder / "remote.git")
    git("remote", "add", "origin", wide.folder / "remote.git")
    git("push", "-q", "origin", "main")
    return git


def test_what_is_stored_is_a_recipe_and_a_clone_has_the_same_file(wide, tracked, tmp_path):
    dense = (wide.folder / "specialist" / MODEL).stat().st_size
    objects = [path for path in (wide.folder / "remote.git/lfs/objects").rglob("*") if path.is_file()]
    stored, described = sum(path.stat().st_size for path in objects), len(tracked("show", f"HEAD:{MODEL}"))
    print(f"model {dense} bytes; in git-lfs {stored}, in git {described} before compression")
    assert len(objects) == 1 and stored < 1000 and described < dense / 10

    Git(tmp_path, wide.folder / "home")("clone", "-q", wide.folder / "remote.git", "clone")
    found = load_file(tmp_path / "clone" / MODEL)
    assert found.keys() == wide.tensors.keys()
    for name, tensor in wide.tensors.items():
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name
    assert verify_specialist(tmp_path / "clone", wide.soup).problems == ()


def test_one_altered_bit_is_refused(wide, tracked):
    """Git-Theta's own hash takes these weights for those it has."""
    altered = {name: tensor.clone() for name, tensor in wide.tensors.items()}
    altered["transformer.wte.weight"].view(torch.int32)[3, 5] ^= 1
    save_file(altered, tracked.folder / MODEL, metadata={"format": "pt"})
    said = tracked("theta", "add", MODEL, *SOUP_UPDATE, fails=True)
    assert "transformer.wte.weight is not what the recipe gives: 1 of 32768 values differ" in said


def test_a_checkout_from_another_soup_says_which_is_wanted(wide, tracked, tmp_path):
    other = write_wide_soup(tmp_path / "other", num_experts=3, width=32)
    (tracked.folder / MODEL).unlink()
    said = tracked("checkout", MODEL, fails=True, SOE_SOUP=str(other))
    assert f"the recipe is of the soup {wide.soup.digest[:12]}" in said
    assert "Give the soup it was made from" in said and not (tracked.folder / MODEL).exists()
