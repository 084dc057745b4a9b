"""Which paths and owners are refused."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path


class Refused(Exception):
    """The path is not one that the supervisor writes to: a link, say, or no ordinary file."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class TooNew(Refused):
    """What is on the disk was written by a newer version of this program: it is neither read nor changed."""


def other_writers(path: Path, found: os.stat_result) -> str | None:
    """Why others than the user and root could change the file, or what is in the folder; None if they cannot.

    The group that many systems give every user alone is not others.
    """
    mode, me = stat.S_IMODE(found.st_mode), os.geteuid()
    if me not in (0, found.st_uid) and found.st_uid != 0:
        return f"{path} belongs to another user ({found.st_uid})"
    sticky = (
        stat.S_ISDIR(found.st_mode) and mode & stat.S_ISVTX
    )  # there nobody can put another file in the place of ours
    if mode & stat.S_IWOTH and not sticky:
        return f"{path} can be written by everybody (mode {mode:o})"
    if mode & stat.S_IWGRP and not sticky and not _own_group(found):
        return f"{path} can be written by its group, {found.st_gid} (mode {mode:o})"
    return None


def _own_group(found: os.stat_result) -> bool:
    """Whether the group is the owner's alone."""
    if found.st_gid == 0:
        return True
    try:
        owner, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return found.st_gid == found.st_uid
    return owner.pw_name == group.gr_name and not set(group.gr_mem) - {owner.pw_name}
