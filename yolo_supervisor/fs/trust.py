"""Refusals of paths, by their kind, owner and mode."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import struct
from pathlib import Path


class Refused(Exception):
    """The path must not be written to, because it is a link or no ordinary file, for instance."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class TooNew(Refused):
    """The files come from a newer version of this program, and are neither read nor changed."""


def other_writers(path: Path, status: os.stat_result) -> str | None:
    """The reason why users other than this one and root could change the path.

    None if they cannot. Many systems give each user a private group. It does not count as other users.
    """
    mode, me = stat.S_IMODE(status.st_mode), os.geteuid()
    if me not in (0, status.st_uid) and status.st_uid != 0:
        return f"{path} belongs to another user ({status.st_uid})"
    sticky = (
        stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX
    )  # other users cannot replace our files in such a folder
    if mode & stat.S_IWOTH and not sticky:
        return f"{path} can be written by all users (mode {mode:o})"
    if mode & stat.S_IWGRP and not sticky and not _private_group(status):
        return f"{path} can be written by its group, {status.st_gid} (mode {mode:o})"
    return None


def own_socket(name: str) -> Path:
    """The path of a socket that only this user can have put there, without links.

    A server may answer what it likes, and a tmux server has its client read and write files.
    ``Refused`` if another user owns the socket, or could replace it. OSError, ValueError if it cannot be found.
    """
    path = Path(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
    found, me = path.lstat(), os.geteuid()
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != me:
        raise Refused(f"{path} is no socket of this user", path)
    _refuse_others(path)
    return path


def own_socket_place(name: str) -> Path:
    """The path, without links, at which a server of this user may make its socket; its folder is made if it is missing.

    ``Refused`` if another user could put something else there, or has. OSError, ValueError if there can be no folder.
    """
    folder = Path(os.path.realpath(os.path.dirname(name)))
    path = folder / os.path.basename(name)
    _refuse_others(folder)
    if not folder.exists():  # it is lost with a reboot where /tmp is
        folder.mkdir(mode=0o700)
    status = folder.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & stat.S_IWOTH:
        raise Refused(f"{folder} is no folder of this user alone", folder)
    _refuse_others(path)
    return own_socket(name) if os.path.lexists(path) else path


def _refuse_others(path: Path) -> None:
    """``Refused`` if other users could replace the path, by one of its folders."""
    me = os.geteuid()
    for folder in path.parents:
        status = folder.stat()
        if status.st_uid not in (0, me):
            raise Refused(f"{folder} belongs to another user ({status.st_uid})", folder)
        if (reason := other_writers(folder, status)) is not None:
            raise Refused(reason, folder)


def own_server(path: Path, limit_s: float) -> None:
    """Connect to the socket, to see that a process of this user serves it: ``Refused`` if another user's does.

    A socket that this user made may have been handed to another user's process. OSError if nothing listens there, or
    nothing answers in time. Systems that do not tell (only Linux does) are not asked.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limit_s)
        client.connect(str(path))
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid():
        raise Refused(f"{path} is served by another user ({uid})", path)


def _private_group(status: os.stat_result) -> bool:
    """Whether the owner is the only member of the group."""
    if status.st_gid == 0:
        return True
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return status.st_gid == status.st_uid
    return owner.pw_name == group.gr_name and not set(group.gr_mem) - {owner.pw_name}
