"""What a run was begun with: kept with its version, compared by its settings alone."""

import json

import pytest

from flows.training.run_record import claim_run, claimed
from storage_schema.manifest import StoreError
from storage_schema.versions import WRITTEN_BY


def test_a_run_is_claimed_once_and_only_with_its_settings(tmp_path):
    claim_run(tmp_path, {"seed": 1})
    claim_run(tmp_path, {"seed": 1})
    assert claimed(tmp_path) == {"seed": 1}
    assert json.loads((tmp_path / "run.json").read_text())["written_by"] == WRITTEN_BY
    with pytest.raises(StoreError, match="seed was 1, now 2"):
        claim_run(tmp_path, {"seed": 2})
    claim_run(tmp_path, {"seed": 1, "train_generic": False})  # a setting that came later, and is off
    with pytest.raises(StoreError, match="train_generic was null, now true"):
        claim_run(tmp_path, {"seed": 1, "train_generic": True})
    claim_run(tmp_path / "too", {"seed": 1, "train_generic": True})
    with pytest.raises(StoreError, match="train_generic was true, now false"):
        claim_run(tmp_path / "too", {"seed": 1, "train_generic": False})


def test_a_record_of_the_first_release_is_read(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"seed": 1}))
    claim_run(tmp_path, {"seed": 1})
    assert claimed(tmp_path) == {"seed": 1}


def test_a_newer_record_is_refused_with_its_release(tmp_path):
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"schema_version": 2, "written_by": "soup-of-experts 7.2.0", "seed": 1}))
    for read in (claimed, lambda folder: claim_run(folder, {"seed": 1})):
        with pytest.raises(
            StoreError, match=r"run\.json has schema version 2.*Install soup-of-experts 7.2.0"
        ):
            read(tmp_path)
