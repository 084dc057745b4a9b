"""The user's home, the XDG base directories, and the supervisor's own directory in them.

The hook command imports this module, and the client waits for its hooks: so it imports almost nothing.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OWN = "yolo-supervisor"
"""The name of the supervisor's own directory in each base directory."""

PROJECTS = "projects"
"""The directory of the projects' state folders, in the supervisor's own state directory."""

NAME_LIMIT = 200
"""The longest name of a project's state folder, in bytes. File systems allow 255, and other names derive from it."""


def home(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The home directory: ``HOME`` if it is an absolute path, else the user database's.

    None if neither names one.
    """
    from pathlib import Path

    found = _home(environment)
    return Path(found) if found is not None else None


def config_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The directory of the user's settings, of all programs."""
    from pathlib import Path

    return Path(_base_dir(environment, "XDG_CONFIG_HOME", ".config"))


def state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The directory of the user's logs and other state, of all programs."""
    from pathlib import Path

    return Path(_base_dir(environment, "XDG_STATE_HOME", ".local/state"))


def own_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The supervisor's directory in the user's state directory."""
    return state_dir(environment) / OWN


def project_state_dir(project: str, environment: Mapping[str, str] = os.environ) -> str:
    """The path of a project's state folder. ``project`` is its real, absolute path.

    Two projects never share one: each ``/`` of the path becomes ``-``, and ``-`` and ``~`` are escaped. A long name
    ends with a digest instead of its end.
    """
    base = _base_dir(environment, "XDG_STATE_HOME", ".local/state")
    return f"{base}/{OWN}/{PROJECTS}/{_project_name(project)}"


def _project_name(project: str) -> str:
    name = project.replace("~", "~~").replace("-", "~-").replace("/", "-")
    if len(os.fsencode(name)) <= NAME_LIMIT:
        return name
    import hashlib

    whole = os.fsencode(name)
    start = os.fsdecode(whole[: NAME_LIMIT - 40]).rstrip("~")
    return f"{start}~{hashlib.sha256(whole).hexdigest()[:32]}"  # an escape is never followed by a digit or a letter


def _home(environment: Mapping[str, str]) -> str | None:
    if os.path.isabs(path := environment.get("HOME", "")):
        return path
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container that runs as a bare number, for example
        return None


def _base_dir(environment: Mapping[str, str], variable: str, usual: str) -> str:
    """The directory that the variable names. By the specification, a relative path is ignored."""
    path = environment.get(variable, "")
    return path if os.path.isabs(path) else f"{(_home(environment) or '/').rstrip('/')}/{usual}"
