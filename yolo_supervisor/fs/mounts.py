"""Tells folders on a disk of this machine from those that other machines may share at the same time."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

LOCAL = frozenset({
    "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "overlay", "ramfs", "reiserfs",
    "tmpfs", "ufs", "vfat", "xfs", "zfs",
})  # fmt: skip
"""File systems that one machine mounts at a time: no NFS, SMB, 9p, virtiofs, FUSE or cluster file system."""


def is_local(folder: Path) -> bool:
    """Whether only this machine can have the folder mounted. An unknown file system is not local."""
    return file_system(folder) in LOCAL


def file_system(folder: Path) -> str | None:
    """The type of the folder's file system, or None if the system does not say."""
    try:
        return _by_mountinfo(folder) if sys.platform == "linux" else _by_partitions(folder)
    except (OSError, ValueError, IndexError):
        return None


def _by_mountinfo(folder: Path) -> str | None:
    """The type from ``/proc/self/mountinfo`` (proc(5)), by device number; btrfs shows another one, so then by path."""
    device = os.stat(folder).st_dev
    by_path: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        mount, _, source = line.partition(" - ")
        fields, kind = mount.split(" "), source.split(" ")[0]
        if fields[2] == f"{os.major(device)}:{os.minor(device)}":
            return kind
        by_path[fields[4]] = kind
    return _nearest(folder, by_path)


def _by_partitions(folder: Path) -> str | None:
    import psutil  # slow to import, and not needed on Linux

    return _nearest(folder, {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)})


def _nearest(folder: Path, mounts: Mapping[str, str]) -> str | None:
    """The value of the mount point that is nearest above the folder."""
    real = Path(os.path.realpath(folder))
    return next((mounts[str(above)] for above in (real, *real.parents) if str(above) in mounts), None)
