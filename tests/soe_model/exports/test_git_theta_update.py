"""Git-Theta's update type `soup` alone, with a git-lfs in memory: what it stores, gives back and refuses."""

import asyncio
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from soe_model.specialists.recipe import FINE_TUNED, make_recipe
from soe_model.specialists.specialist_files import write_specialist
from tests.extras import needs


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
def update(lfs, wide, monkeypatch):
    """Makes the plug-in as Git-Theta does: by its entry point."""
    from git_theta.params import get_update_serializer  # deptry: ignore[DEP004]
    from git_theta.updates import get_update_handler  # deptry: ignore[DEP004]

    monkeypatch.setenv("SOE_SOUP", str(wide.folder / "soup"))
    return lambda *data: get_update_handler("soup")(get_update_serializer(), *data)


def offer(writer, name: str, array: np.ndarray):
    return asyncio.run(writer.write(array, (name,)))


def taken_out(update, pointer, names, path="") -> list:
    """The tensors, each asked of a plug-in of its own and all at once, as Git-Theta does."""

    async def all_of_them():
        described = SimpleNamespace(lfs_metadata=pointer)
        return await asyncio.gather(*(update().apply(described, (name,), path=path) for name in names))

    return asyncio.run(all_of_them())


def test_all_tensors_share_one_record_that_is_read_once(wide, update, lfs):
    writer = update(str(wide.folder / "specialist"))
    pointers = [offer(writer, name, tensor.numpy())[0] for name, tensor in wide.tensors.items()]
    assert all(pointer == pointers[0] for pointer in pointers)
    found = taken_out(update, pointers[0], list(wide.tensors))
    for (name, wanted), tensor in zip(wide.tensors.items(), found, strict=True):
        assert tensor.dtype == np.float32 and np.array_equal(tensor, wanted.numpy()), name
    assert lfs.calls == ["clean", "smudge"]


def test_weights_that_are_not_the_recipes_are_refused(wide, update, lfs, monkeypatch):
    name, tensor = next(iter(wide.tensors.items()))
    altered = tensor.numpy().copy()
    altered.flat[1] += 0.25
    writer = update(str(wide.folder / "specialist/specialist.json"))
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
        offer(update(str(wide.folder / "specialist")), name, tensor.numpy())


def test_a_fine_tuned_specialist_is_refused(wide, update, tmp_path):
    how = {"method": FINE_TUNED}
    recipe = make_recipe(wide.soup, coefficients_N=torch.tensor([0.5, -2.0, 0.25]), how=how)
    write_specialist(wide.soup, tmp_path / "tuned", recipe, wide.instance_P)
    name, tensor = next(iter(wide.tensors.items()))
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
def test_a_record_is_checked_when_it_is_read(wide, update, record, message):
    from git_theta import git_utils, metadata  # deptry: ignore[DEP004]

    if isinstance(record, dict):
        record = json.dumps(record | {"soup": record["soup"] or wide.soup.digest}).encode()

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
