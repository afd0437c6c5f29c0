"""Exports are put together beside their folder."""

import pytest

from soe_model.exports.parts import new_folder


def test_an_export_leaves_a_folder_of_the_users_alone(tmp_path):
    """Named as work that another program left beside it."""
    (tmp_path / "export.partial").mkdir()
    (tmp_path / "export.partial/mine.txt").write_text("precious")
    with new_folder(tmp_path / "export") as work:
        (work / "part").write_text("whole")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "other"):
        raise RuntimeError
    assert (tmp_path / "export.partial/mine.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "export.partial"]
