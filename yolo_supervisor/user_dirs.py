"""The user's home and XDG base directories."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


def home(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The home directory: ``HOME`` if it is an absolute path, else the user database's.

    None if neither names one.
    """
    if os.path.isabs(path := environment.get("HOME", "")):
        return Path(path)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container that runs as a bare number, for example
        return None


def config_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The directory of the user's settings, of all programs."""
    return _base_dir(environment, "XDG_CONFIG_HOME", ".config")


def state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The directory of the user's logs and other state, of all programs."""
    return _base_dir(environment, "XDG_STATE_HOME", ".local/state")


def _base_dir(environment: Mapping[str, str], variable: str, usual: str) -> Path:
    """The directory that the variable names. By the specification, a relative path is ignored."""
    path = environment.get(variable, "")
    return Path(path) if os.path.isabs(path) else (home(environment) or Path("/")) / usual
