"""The profile ``soe``: written for its owner only, and undone."""

from __future__ import annotations

from flows.local_stack import prefect_profile


def test_the_former_profile_comes_back(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    file = tmp_path / "profiles.toml"
    former = 'active = "mine"\n\n[profiles.mine]\nPREFECT_API_URL = "http://there/api"\n'
    file.write_text(former)
    before = prefect_profile.activate(prefect_profile.settings("http://here/api", "soe:x"))
    assert prefect_profile.is_active("http://here/api") and not prefect_profile.is_active("http://there/api")
    assert file.stat().st_mode & 0o777 == 0o600
    prefect_profile.restore(before, "http://here/api")
    assert file.read_text() == former


def test_another_stacks_profile_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    first = prefect_profile.activate(prefect_profile.settings("http://first/api", "soe:x"))
    second = prefect_profile.activate(prefect_profile.settings("http://second/api", "soe:y"))
    prefect_profile.restore(first, "http://first/api")
    assert prefect_profile.is_active("http://second/api")
    prefect_profile.restore(second, "http://second/api")
    assert prefect_profile.is_active("http://first/api")
