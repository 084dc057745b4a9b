"""The owner of what root makes: in another user's folder that user, so that root locks no user out.

Only small modules are imported, and paths may be strings: the fast path of ``commit`` uses this module.
"""

import os


def other_owner(folder: str | os.PathLike[str]) -> os.stat_result | None:
    """The status of another user's folder in which root works; None everywhere else."""
    if os.geteuid() != 0:
        return None
    found = os.stat(folder)
    return found if found.st_uid != 0 else None


def open_for_owner(path: str | os.PathLike[str], flags: int, mode: int) -> int:
    """Open a file; one that root makes here belongs to the owner of its folder, one that is there stays whose it is."""
    flags |= os.O_CLOEXEC
    if flags & os.O_CREAT and (owner := other_owner(os.path.dirname(path) or ".")) is not None:
        try:
            fd = os.open(path, flags | os.O_EXCL, mode)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
        else:
            os.fchown(fd, owner.st_uid, owner.st_gid)
            return fd
    return os.open(path, flags, mode)
