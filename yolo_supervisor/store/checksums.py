"""The ``.sha256`` beside a document, as the plugin writes it: lowercase hex, nothing else. It is for neighbours: two
files never change together, so what a document's digest ought to be is told by the journal alone."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from yolo_supervisor.formats import plugin
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.atomic import make_folder, write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.system.git_layout import common_dir, root_of

HIDDEN = ("*.sha256", "**/.*.[0-9]*.tmp")
"""The sidecars, and what a crash may leave of a file that was being written."""


def refresh(disk: Disk, path: Path, told: str, make: bool) -> None:
    """Bring the document's sidecar up to date; with ``make`` also one that is not there. It may fail, and is silent."""
    sidecar = path.with_name(path.name + ".sha256")
    with contextlib.suppress(OSError, Refused):
        there = disk.status(sidecar)
        if (there is not None or make) and disk.read(sidecar) != told.encode():
            write_atomic(disk, sidecar, told.encode())


def hide(disk: Disk, project: Path) -> bool:
    """Keep new sidecars out of ``git status``: by the repository's own list of what only this clone ignores.

    False where that cannot be done: then none should be made.
    """
    root = root_of(project)
    if root is None:
        return True
    try:
        list_ = common_dir(root) / "info" / "exclude"
        before = disk.read(list_) or b""
        inside = str((project / plugin.PLANNING).relative_to(root))
        if "\n" in inside:
            return False
        lines = [f"{_literally(inside)}/{name}".encode(errors="surrogateescape") for name in HIDDEN]
        if missing := [line + b"\n" for line in lines if line not in before.splitlines()]:
            make_folder(disk, list_.parent, 0o777)
            write_atomic(disk, list_, before + (b"" if before[-1:] in (b"", b"\n") else b"\n") + b"".join(missing))
    except (OSError, ValueError, Refused):
        return False
    return True


def _literally(path: str) -> str:
    """The path as a pattern that matches nothing else."""
    return re.sub(r"[\\*?\[\]#!]", r"\\\g<0>", path)
