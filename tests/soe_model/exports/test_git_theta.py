"""A specialist in git through Git-Theta's update type `soup`, with real git, git-lfs and git-theta."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.recipe import FINE_TUNED, make_recipe
from soe_model.specialists.specialist_files import MODEL, write_specialist
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
def made(tmp_path_factory):
    """A soup and a specialist of it, with a reading of both."""
    folder = tmp_path_factory.mktemp("theta")
    soup = SoupOfExperts.open(write_wide_soup(folder / "soup", num_experts=3, width=64))
    recipe = make_recipe(soup, coefficients_N=torch.tensor([0.5, -2.0, 0.25]), how={"method": "given"})
    instance_P = soup.instances(recipe.coefficients_N[None])[0]
    write_specialist(soup, folder / "specialist", recipe, instance_P)
    return SimpleNamespace(
        folder=folder, soup=soup, instance_P=instance_P, tensors=load_file(folder / "specialist" / MODEL)
    )


@pytest.fixture(scope="module")
def tracked(made):
    """git in a repository that tracks the specialist and has pushed it to ``remote.git`` beside it."""
    needs("git_theta", extra="git-theta")
    needs_program("git-lfs")
    home, work = made.folder / "home", made.folder / "work"
    home.mkdir()
    shutil.copytree(made.folder / "specialist", work)
    git = Git(work, home)
    git("init", "-q", "-b", "main")
    soup = made.folder / "soup"
    for name, value in (("user.name", "A"), ("user.email", "a@localhost"), ("soe.soup", soup)):
        git("config", "--global", name, value)
    git("theta", "install")
    git("theta", "track", MODEL)
    git("theta", "add", MODEL, *SOUP_UPDATE)
    git("add", ".")
    git("commit", "-q", "-m", "A specialist")
    git("init", "-q", "--bare", "-b", "main", made.folder / "remote.git")
    git("remote", "add", "origin", made.folder / "remote.git")
    git("push", "-q", "origin", "main")
    return git


def test_what_is_stored_is_a_recipe_and_a_clone_has_the_same_file(made, tracked, tmp_path):
    dense = (made.folder / "specialist" / MODEL).stat().st_size
    objects = [path for path in (made.folder / "remote.git/lfs/objects").rglob("*") if path.is_file()]
    stored, described = sum(path.stat().st_size for path in objects), len(tracked("show", f"HEAD:{MODEL}"))
    print(f"model {dense} bytes; in git-lfs {stored}, in git {described} before compression")
    assert len(objects) == 1 and stored < 1000 and described < dense / 10

    Git(tmp_path, made.folder / "home")("clone", "-q", made.folder / "remote.git", "clone")
    found = load_file(tmp_path / "clone" / MODEL)
    assert found.keys() == made.tensors.keys()
    for name, tensor in made.tensors.items():
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name
    assert verify_specialist(tmp_path / "clone", made.soup).problems == ()


def test_one_altered_bit_is_refused(made, tracked):
    """Git-Theta's own hash takes these weights for those it has."""
    altered = {name: tensor.clone() for name, tensor in made.tensors.items()}
    altered["transformer.wte.weight"].view(torch.int32)[3, 5] ^= 1
    save_file(altered, tracked.folder / MODEL, metadata={"format": "pt"})
    said = tracked("theta", "add", MODEL, *SOUP_UPDATE, fails=True)
    assert "transformer.wte.weight is not what the recipe gives: 1 of 32768 values differ" in said


def test_a_checkout_from_another_soup_says_which_is_wanted(made, tracked, tmp_path):
    other = write_wide_soup(tmp_path / "other", num_experts=3, width=32)
    (tracked.folder / MODEL).unlink()
    said = tracked("checkout", MODEL, fails=True, SOE_SOUP=str(other))
    assert f"the recipe is of the soup {made.soup.digest[:12]}" in said
    assert "Give the soup it was made from" in said and not (tracked.folder / MODEL).exists()


class FakeLfs:
    """git-lfs in memory, counting what is asked of it."""

    def __init__(self):
        self.objects, self.calls = {}, []

    async def clean(self, content: bytes) -> str:
        self.calls.append("clean")
        oid = hashlib.sha256(content).hexdigest()
        self.objects[oid] = content
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"

    async def smudge(self, pointer: str) -> bytes:
        """What git-lfs does where the object is missing: the pointer itself."""
        self.calls.append("smudge")
        await asyncio.sleep(0)
        return self.objects.get(pointer.split("sha256:")[1][:64], pointer.encode())


@pytest.fixture
def lfs(monkeypatch):
    needs("git_theta", extra="git-theta")
    from git_theta import git_utils  # deptry: ignore[DEP004]

    fake = FakeLfs()
    monkeypatch.setattr(git_utils, "git_lfs_clean", fake.clean)
    monkeypatch.setattr(git_utils, "git_lfs_smudge", fake.smudge)
    return fake


@pytest.fixture
def update(lfs, made, monkeypatch):
    """Makes the plug-in as Git-Theta does: by its entry point."""
    from git_theta.params import get_update_serializer  # deptry: ignore[DEP004]
    from git_theta.updates import get_update_handler  # deptry: ignore[DEP004]

    monkeypatch.setenv("SOE_SOUP", str(made.folder / "soup"))
    return lambda *data: get_update_handler("soup")(get_update_serializer(), *data)


def offer(writer, name: str, array: np.ndarray):
    return asyncio.run(writer.write(array, (name,)))


def taken_out(update, pointer, names, path="") -> list:
    """The tensors, each asked of a plug-in of its own and all at once, as Git-Theta does."""

    async def all_of_them():
        described = SimpleNamespace(lfs_metadata=pointer)
        return await asyncio.gather(*(update().apply(described, (name,), path=path) for name in names))

    return asyncio.run(all_of_them())


def test_all_tensors_share_one_record_that_is_read_once(made, update, lfs):
    writer = update(str(made.folder / "specialist"))
    pointers = [offer(writer, name, tensor.numpy())[0] for name, tensor in made.tensors.items()]
    assert all(pointer == pointers[0] for pointer in pointers)
    found = taken_out(update, pointers[0], list(made.tensors))
    for (name, wanted), tensor in zip(made.tensors.items(), found, strict=True):
        assert tensor.dtype == np.float32 and np.array_equal(tensor, wanted.numpy()), name
    assert lfs.calls == ["clean", "smudge"]


def test_weights_that_are_not_the_recipes_are_refused(made, update, lfs, monkeypatch):
    name, tensor = next(iter(made.tensors.items()))
    altered = tensor.numpy().copy()
    altered.flat[1] += 0.25
    writer = update(str(made.folder / "specialist/specialist.json"))
    for key, offered, message in (
        (name, altered, f"{name} is not what the recipe gives: 1 of .* values differ, by 0.25 at most"),
        (name, tensor.numpy()[:1], "the recipe gives"),
        (name, tensor.double().numpy(), "is float64"),
        ("lm_head.weight", tensor.numpy(), "has no parameter 'lm_head.weight'"),
    ):
        with pytest.raises(ValueError, match=message):
            offer(writer, key, offered)
    with pytest.raises(ValueError, match="there is no recipe at update.pt"):
        offer(update("update.pt"), name, tensor.numpy())
    monkeypatch.delenv("SOE_SOUP")
    with pytest.raises(ValueError, match="where is the soup.*SOE_SOUP"):
        offer(update(str(made.folder / "specialist")), name, tensor.numpy())


def test_a_fine_tuned_specialist_is_refused(made, update, tmp_path):
    how = {"method": FINE_TUNED}
    recipe = make_recipe(made.soup, coefficients_N=torch.tensor([0.5, -2.0, 0.25]), how=how)
    write_specialist(made.soup, tmp_path / "tuned", recipe, made.instance_P)
    name, tensor = next(iter(made.tensors.items()))
    with pytest.raises(ValueError, match="of a fine-tuned specialist.*without --update-type soup"):
        offer(update(str(tmp_path / "tuned")), name, tensor.numpy())


RECORD = {"soup": "", "coefficients": [0.5, -2.0, 0.25], "tensors": "0" * 64}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "no recipe of a specialist"),
        (b"[1]", "no recipe of a specialist"),
        (b"\xff", "no recipe of a specialist"),
        (RECORD | {"coefficients": ["x"]}, "no recipe of a specialist"),
        ({"soup": "a", "coefficients": [1]}, "no recipe of a specialist.*tensors"),
        (RECORD | {"coefficients": [0.5, -2.0]}, "2 coefficients; the soup has 3 experts"),
        (RECORD | {"coefficients": [0.5, float("nan"), 0]}, "NaN is not a JSON number"),
        (RECORD | {"soup": "another"}, "the recipe is of the soup another"),
        (RECORD, "the tensors 000000000000… were added, but here they come out as"),
    ],
)
def test_a_record_is_checked_when_it_is_read(made, update, record, message):
    from git_theta import git_utils, metadata  # deptry: ignore[DEP004]

    if isinstance(record, dict):
        record = json.dumps(record | {"soup": record["soup"] or made.soup.digest}).encode()

    async def store():
        content = await update().serializer.serialize({"recipe": np.frombuffer(record, np.uint8)})
        return metadata.LfsMetadata.from_pointer(await git_utils.git_lfs_clean(content))

    with pytest.raises(ValueError, match=message):
        taken_out(update, asyncio.run(store()), ["transformer.wte.weight"])


def test_a_record_that_git_lfs_does_not_have_is_named(update):
    missing = SimpleNamespace(oid="ab" * 32, lfs_pointer=f"version 1\noid sha256:{'ab' * 32}\nsize 9\n")
    with pytest.raises(ValueError, match="for the object abababababab….*git lfs fetch"):
        taken_out(update, missing, ["transformer.wte.weight"])


def test_no_file_is_written_in_a_format_that_its_name_denies(update, monkeypatch):
    """Without the variable Git-Theta would write a PyTorch file of that name, and say nothing."""
    pointer = SimpleNamespace(oid="cd" * 32, lfs_pointer=f"oid sha256:{'cd' * 32}\n")
    monkeypatch.delenv("GIT_THETA_CHECKPOINT_TYPE", raising=False)
    with pytest.raises(ValueError, match="in the format 'pytorch'.*GIT_THETA_CHECKPOINT_TYPE=transformers"):
        taken_out(update, pointer, ["a"], path="models/model.safetensors")
    monkeypatch.setenv("GIT_THETA_CHECKPOINT_TYPE", "safetensors")
    with pytest.raises(ValueError, match="git lfs fetch"):
        taken_out(update, pointer, ["a"], path="models/model.safetensors")
