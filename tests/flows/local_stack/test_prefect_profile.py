"""The profile ``soe``: written for its owner only, and undone."""

from __future__ import annotations

import tomllib

import pytest

from flows.local_stack import prefect_profile
from flows.local_stack import state as stack_state
from tests.flows.stand_ins import start

MINE = """# Written by hand.
active = "mine"  # not the other one

# At work.
[profiles.mine]
PREFECT_API_URL = "http://there/api"  # behind the gate
# PREFECT_API_KEY = "later"

[profiles.another]
PREFECT_LOGGING_LEVEL = 'DEBUG'
"""
HOME = '# Nothing is chosen.\n\n# At home.\n[profiles.home]\nPREFECT_API_URL = "http://home/api"\n'
OURS = '[profiles.soe]\n# As it was.\nPREFECT_API_URL = "http://old/api"\n\n[profiles.home]\n'


@pytest.fixture()
def file(monkeypatch, tmp_path):
    """The profiles file; it is not there yet."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    return tmp_path / "profiles.toml"


def activate(url: str) -> dict:
    """What was there before."""
    earlier: list[dict] = []
    prefect_profile.activate(prefect_profile.settings(url, "soe:x"), earlier.append)
    return earlier[0]


@pytest.mark.parametrize("former", [MINE, HOME, OURS, "# Only this.\n"])
def test_the_former_profile_comes_back_with_its_comments(file, former):
    file.write_text(former)
    before = activate("http://here/api")
    assert prefect_profile.is_active("http://here/api") and not prefect_profile.is_active("http://there/api")
    assert file.stat().st_mode & 0o777 == 0o600
    now = tomllib.loads(file.read_text())
    assert now["profiles"].pop("soe") == prefect_profile.settings("http://here/api", "soe:x")
    kept = [line for line in former.splitlines() if "active =" not in line and "old" not in line]
    assert [line for line in file.read_text().splitlines() if line in kept and line] == list(
        filter(None, kept)
    )
    prefect_profile.restore(before, "http://here/api")
    assert file.read_text() == former


def test_a_file_that_was_not_there_is_gone_again(file):
    before = activate("http://here/api")
    assert file.stat().st_mode & 0o777 == 0o600
    prefect_profile.restore(before, "http://here/api")
    assert not file.exists()


def test_another_stacks_profile_is_left_alone(file):
    first = activate("http://first/api")
    second = activate("http://second/api")
    prefect_profile.restore(first, "http://first/api")
    assert prefect_profile.is_active("http://second/api")
    prefect_profile.restore(second, "http://second/api")
    assert prefect_profile.is_active("http://first/api")


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("command", ["up", "down"])
def test_killed_between_any_two_writes_the_user_loses_nothing(stand_ins, monkeypatch, command, writes):
    file = prefect_profile.path()
    file.parent.mkdir()
    file.write_text(MINE)
    start()
    if command == "up":
        stand_ins.down()
    # Who is killed tidies nothing up.
    monkeypatch.setattr(stand_ins, "stop_begun", lambda known, before: None)
    left = writes + (3 if command == "up" else 0)  # the processes are written down first, one by one

    def killed(write):
        def until(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            write(*arguments)

        return until

    with monkeypatch.context() as patch:
        for module in (prefect_profile, stack_state):
            patch.setattr(module, "write_atomically", killed(module.write_atomically))
        try:
            getattr(stand_ins, command)()
        except Killed:
            pass
    stand_ins.up()
    assert prefect_profile.is_active(stack_state.load().api.url)
    stand_ins.down()
    assert file.read_text() == MINE
    assert stack_state.load().profile_before is None


def test_a_profile_chosen_since_comes_back_where_ours_was_never_written(stand_ins, monkeypatch):
    """The command was killed just before it wrote; then the user chose another profile."""
    file = prefect_profile.path()
    file.parent.mkdir()
    file.write_text(MINE)
    known = start()
    stand_ins.down()
    known = stack_state.load()
    known.profile_before = {"file": str(file), "active": "mine", "settings": None}
    known.save()
    chosen = MINE.replace('active = "mine"', 'active = "another"')
    file.write_text(chosen)
    stand_ins.up()
    stand_ins.down()
    assert file.read_text() == chosen
