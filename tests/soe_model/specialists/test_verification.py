"""A specialist's folder is what its soup and its recipe give, or what differs is named."""

import json
from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file

from soe_model.specialists.specialist_files import MODEL
from soe_model.specialists.verification import verify_specialist
from storage_schema.manifest import FileEntry, file_digest, read_manifest
from tests.soe_model.toy_soup import write


def test_one_altered_bit_is_found_and_named(soup, tmp_path):
    write(soup, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / MODEL)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[2] = torch.nextafter(tensors[name].view(-1)[2], torch.tensor(9.0))
    save_file(tensors, tmp_path / "a" / MODEL, metadata={"format": "pt"})
    problems = " ".join(verify_specialist(tmp_path / "a", soup).problems)
    assert f"{name} differs in 1 of" in problems and "model.safetensors was altered" in problems
    del tensors[name]
    save_file(tensors | {"more": torch.zeros(2)}, tmp_path / "a" / MODEL)
    problems = " ".join(verify_specialist(tmp_path / "a", soup).problems)
    assert f"the tensor {name} is missing" in problems and "there is a tensor more more" in problems


def test_a_configuration_that_is_not_the_soups_is_found(soup, tmp_path):
    """Even if its new sha256 stands in the manifest. So is an extra file that transformers would read."""
    write(soup, tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    (tmp_path / "a/adapter_config.json").write_text("{}")
    manifest = read_manifest(tmp_path / "a", "specialist")
    files = [
        FileEntry(path=e.path, bytes=(p := tmp_path / "a" / e.path).stat().st_size, sha256=file_digest(p))
        for e in manifest.files
    ]
    (tmp_path / "a/specialist.json").write_text(replace(manifest, files=tuple(files)).to_json())
    problems = verify_specialist(tmp_path / "a", soup).problems
    assert problems == (
        "there is adapter_config.json, which no specialist has.",
        "config.json is not what the soup and this version of transformers give.",
    )


def test_a_tokenizer_setting_that_earlier_folders_lack_is_no_difference(soup, tmp_path):
    write(soup, tmp_path / "a")
    path = tmp_path / "a/tokenizer_config.json"
    settings = json.loads(path.read_text())
    for content, problems in (({}, 0), ({"split_special_tokens": False}, 1)):
        path.write_text(
            json.dumps({k: v for k, v in settings.items() if k != "split_special_tokens"} | content)
        )
        found = verify_specialist(tmp_path / "a", soup).problems
        assert sum("tokenizer_config.json is not what" in problem for problem in found) == problems
