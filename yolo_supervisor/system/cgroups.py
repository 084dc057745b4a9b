"""The control groups of a process (Linux)."""

from __future__ import annotations

from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
SYSTEMD_MOUNT = MOUNT / "systemd"
"""The hierarchy of version 1 in which systemd keeps its units."""


def cgroup_v2(pid: int) -> Path | None:
    """The folder of the process's cgroup of version 2; None if it is in none.

    OSError if the process is gone.
    """
    return next((folder for mount, folder in parse(_read(pid)) if mount == MOUNT), None)


def unit_members(pid: int) -> list[int]:
    """The processes in the cgroup in which systemd keeps this one; none if it is in the root.

    OSError if they cannot be read.
    """
    for mount, folder in parse(_read(pid)):
        if folder != mount and (members := folder / "cgroup.procs").exists():
            return [int(word) for word in members.read_text().split() if word != "0"]
    return []


def parse(text: str) -> list[tuple[Path, Path]]:
    """The mount point and folder of each cgroup of version 2 or systemd's hierarchy.

    ``text`` is a ``/proc/PID/cgroup``. Other hierarchies of version 1 are left out.
    """
    cgroups = []
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controllers == "name=systemd":
            mount = SYSTEMD_MOUNT if controllers else MOUNT
            cgroups.append((mount, mount / path.lstrip("/")))
    return cgroups


def _read(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()
