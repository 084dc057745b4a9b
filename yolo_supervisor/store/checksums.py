"""Checksum files: the ``.sha256`` beside a document, in the plugin's format (lowercase hex).

They are for other programs. Two files cannot change at the same moment, so the journal alone decides which digest is
right.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import plugin
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.atomic import make_folder, write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.system.git_layout import common_dir, root_of

HIDDEN = ("*.sha256", "**/.*.[0-9]*.tmp", f"{plugin.SNAPSHOTS}/", own_files.LINK)
"""Patterns of the checksum files, of temporary files that a crash may leave, of the folder of snapshots, and of the
link to the state folder."""


def refresh(disk: Disk, path: Path, digest: str, make: bool) -> None:
    """Write the document's digest into its checksum file, with ``make`` also if there is none.

    It may fail, and is silent then.
    """
    checksum = path.with_name(path.name + ".sha256")
    with contextlib.suppress(OSError, Refused):
        if (make or disk.status(checksum) is not None) and disk.read(checksum) != digest.encode():
            write_atomic(disk, checksum, digest.encode())


def hide(disk: Disk, project: Path) -> bool:
    """Keep what we make in a project out of ``git status``, by the exclude file of the repository's clone.

    False if that cannot be done: then nothing should be made there.
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
    """The path as a pattern that matches this path only."""
    return re.sub(r"[\\*?\[\]#!]", r"\\\g<0>", path)
