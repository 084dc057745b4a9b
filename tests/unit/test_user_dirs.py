"""The user's directories, by the environment and the XDG base directory specification."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from yolo_supervisor import log, user_dirs
from yolo_supervisor.config import user_file


@pytest.mark.parametrize("environment", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_without_an_absolute_home_the_user_database_names_it(environment: dict[str, str]) -> None:
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)

    assert user_dirs.home(environment) == home
    assert user_dirs.home({"HOME": "/home/u"}) == Path("/home/u")


def test_settings_and_log_use_the_same_home() -> None:
    environment = {"HOME": "relative", "XDG_STATE_HOME": "relative", "XDG_CONFIG_HOME": "relative"}
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)

    assert user_file(environment) == home / ".config/yolo-supervisor/supervisor.toml"
    assert log.user_copy(environment) == home / ".local/state/yolo-supervisor/log.jsonl"


def test_an_absolute_xdg_directory_comes_before_the_home() -> None:
    environment = {"HOME": "/home/u", "XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c"}

    assert user_dirs.state_dir(environment) == Path("/s")
    assert user_dirs.config_dir(environment) == Path("/c")


def test_a_user_whom_the_machine_does_not_know_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> object:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)

    assert user_dirs.home({}) is None
    assert user_dirs.state_dir({}) == Path("/.local/state")
