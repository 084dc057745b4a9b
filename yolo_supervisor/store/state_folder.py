"""A project's state folder: made at the first start, found again, set aside, taken up.

It lies in the user's own state directory, so nothing in it can have come with a clone, a copy or an archive, and
``git clean -fdx`` in the project takes nothing of it. ``project.json`` in it names the project by path and inode. In
the project lies only a link to it, for people and for programs that read; no change is made through the link.

What becomes of an older folder:

====================================================  =================================================================
found                                                 done
====================================================  =================================================================
a state folder of this path, but another project      set aside and offered; the new journal goes on above its numbers
(deleted and cloned again, say)
a link to the state folder of another path that is    the project was moved: its state folder gets the new name
gone, and the same inode
a link to the state folder of another project         the project is a copy: it begins with another state folder
a link into another user's or container's home        ``Refused``: two supervisors may not share a project unknowingly
a folder ``.supervisor`` of version 0.1.0 that this   taken up
user wrote on this machine, at this place
any other folder ``.supervisor``                      left alone, and reported until a person decides
====================================================  =================================================================
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.own import Enrolment
from yolo_supervisor.fs.trust import Refused, other_writers
from yolo_supervisor.models import from_iso
from yolo_supervisor.store import checksums, lines
from yolo_supervisor.store.atomic import make_folder, refuse_links, sync_folder, write_atomic
from yolo_supervisor.store.disk import FILE_MODE, Disk
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.journal import LIMIT, Journal, read_lines, refuse_newer, segments
from yolo_supervisor.store.locks import Busy, file_lock
from yolo_supervisor.store.paths import Paths, refuse_linked_planning, refuse_root
from yolo_supervisor.system.process_backend import backend

EVIDENCE_LIMIT = 4 * 2**20
"""The bytes of an old folder's file that are searched for the name of this machine."""

MADE_S = 60.0
"""The longest time between the making of a folder's lock file and the first entry of its journal, in seconds."""

SEQ_LIMIT = 2**48
"""Larger numbers of lines are not believed: no journal gets so far."""


class UndecidedCode(StrEnum):
    """The reasons why a person has to decide about an older state folder."""

    FOREIGN = "foreign"
    """It lies in the project, and nothing in it shows that this machine wrote it."""
    OFFERED = "offered"
    """It was set aside, because another project was at this path."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """An older state folder that waits for ``state adopt``."""

    code: UndecidedCode
    folder: Path


# -- enrolment ---------------------------------------------------------------------------------------------------------


def enrol(disk: Disk, paths: Paths, limit_s: float) -> bool:
    """Make or find the project's state folder, and the link to it; whether a folder of 0.1.0 was taken up.

    FileNotFoundError without the project, ``Refused`` if a folder above it is not private, or the project's link leads
    to another home; ``Busy`` if another process enrols, or a daemon of version 0.1.0 supervises the project.
    """
    if _is_enrolled(disk, paths):
        return False
    with _lock(disk, paths, limit_s):
        return not _is_enrolled(disk, paths) and _enrol(disk, paths)


def _is_enrolled(disk: Disk, paths: Paths) -> bool:
    project = _status(disk, paths)
    known = read_enrolment(disk, paths.folder)
    if known is None or known.path != str(paths.real) or not known.is_of(project):
        return False
    found = disk.status(paths.link)
    if found is None:
        return False
    return not stat.S_ISLNK(found.st_mode) or disk.readlink(paths.link) == paths.folder


def _enrol(disk: Disk, paths: Paths) -> bool:
    """Enrol under the lock; whether a folder of 0.1.0 was taken up."""
    taken_up = False
    if (elsewhere := linked_elsewhere(disk, paths)) is not None:
        raise Refused(
            f"{paths.link} leads to {elsewhere}, which is not in this user's state directory ({paths.folder.parent}): "
            "run with the same HOME and XDG_STATE_HOME, or begin with a new folder: yolo-supervisor state adopt --new",
            paths.link,
        )
    target = _linked(disk, paths)
    offers: tuple[str, ...] = ()
    if disk.status(paths.folder) is not None:
        known = read_enrolment(disk, paths.folder)
        offers = _offers(disk, paths.folder)
        if known is not None and not known.is_of(_status(disk, paths)) and target != paths.folder:
            offers = (str(_set_aside(disk, paths.folder)),)
    elif target is not None and _has_moved(disk, paths, target):
        offers = _offers(disk, target)
        disk.rename(target, paths.folder)
    elif _is_real(disk, paths.link) and was_written_here(disk, paths.link):
        _refuse_running(disk, paths.link)
        _move(disk, paths.link, paths.folder)
        taken_up = True
    else:
        offers = tuple(map(str, _all_set_aside(disk, paths.folder)))  # of an adoption that was killed, or of old
    _begin(disk, paths, offers)
    return taken_up


def _begin(disk: Disk, paths: Paths, offers: tuple[str, ...]) -> None:
    """Make the folder where it is missing, name its project in it, and link to it."""
    make_folder(disk, paths.folder)
    refuse_newer(disk, paths.folder)
    older = [Path(offer) for offer in offers] + ([paths.link] if _is_real(disk, paths.link) else [])
    if disk.status(paths.journal) is None and (above := max((last_seq(disk, each) for each in older), default=0)):
        line = lines.CheckpointLine(seq=above + 1, checkpoint=Index().checkpoint())
        write_atomic(disk, paths.journal, lines.dump(line))
    _record(disk, paths, offers)
    _link(disk, paths)


def _record(disk: Disk, paths: Paths, offers: tuple[str, ...]) -> None:
    enrolment = Enrolment(str(paths.real), _status(disk, paths).st_ino, offers)
    if read_enrolment(disk, paths.folder) != enrolment:
        write_atomic(disk, paths.enrolment, own_files.dump_enrolment(enrolment))


def _link(disk: Disk, paths: Paths) -> None:
    """Link to the folder. Where that is impossible (a file system without links) the project has no link."""
    found = disk.status(paths.link)
    if found is not None and not stat.S_ISLNK(found.st_mode):
        return
    with contextlib.suppress(OSError):
        if found is not None:
            if disk.readlink(paths.link) == paths.folder:
                return
            disk.unlink(paths.link)
        make_folder(disk, paths.planning, 0o777)
        if checksums.hide(disk, paths.project):  # before git can see it
            disk.symlink(paths.folder, paths.link)
            sync_folder(disk, paths.planning)


def _status(disk: Disk, paths: Paths) -> os.stat_result:
    found = disk.status(paths.real)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(paths.real))
    return found


def _linked(disk: Disk, paths: Paths) -> Path | None:
    """The target of the project's link; None if there is no link."""
    found = disk.status(paths.link)
    return disk.readlink(paths.link) if found is not None and stat.S_ISLNK(found.st_mode) else None


def linked_elsewhere(disk: Disk, paths: Paths) -> Path | None:
    """The target of the project's link if it is no state folder in this user's state directory, else None."""
    target = _linked(disk, paths)
    return target if target is not None and target.parent != paths.folder.parent else None


def _has_moved(disk: Disk, paths: Paths, target: Path) -> bool:
    """Whether the state folder is that of this very folder at an earlier path."""
    known = read_enrolment(disk, target)
    return known is not None and known.is_of(_status(disk, paths)) and disk.status(Path(known.path)) is None


def read_enrolment(disk: Disk, folder: Path) -> Enrolment | None:
    """The enrolment in a state folder; None if there is none that can be read."""
    return own_files.load_enrolment(disk.read(folder / own_files.ENROLMENT) or b"")


def _offers(disk: Disk, folder: Path) -> tuple[str, ...]:
    """The older state folders that the one in use offers."""
    known = read_enrolment(disk, folder)
    return known.offers if known is not None else ()


@contextlib.contextmanager
def _lock(disk: Disk, paths: Paths, limit_s: float) -> Iterator[None]:
    """Hold the lock of all enrolments of the user, in a directory that no other user can change."""
    refuse_linked_planning(paths.planning, disk.status(paths.planning))
    projects = paths.folder.parent
    base = Path(os.path.realpath(projects.parent.parent))  # the user may keep the state directory elsewhere
    for folder in (base / projects.parent.name, projects):
        refuse_untrusted(disk, folder)
        make_folder(disk, folder)
    _sync_above(disk, projects)
    path = projects / "enrolment.lock"
    fd = disk.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
    try:
        with file_lock(disk, fd, path, limit_s):
            yield
    finally:
        disk.close(fd)


def _sync_above(disk: Disk, folder: Path) -> None:
    """Make the names of the folders above durable: a process that made one may have been killed before it had."""
    for above in Path(os.path.realpath(folder)).parents:
        with contextlib.suppress(PermissionError):  # another user's folder, which is there for long
            sync_folder(disk, above)


def refuse_other_owners_root(disk: Disk, paths: Paths) -> None:
    """``Refused`` where root would work in another user's project."""
    for folder in (paths.project, paths.planning):
        refuse_root(folder, disk.status(folder))


def refuse_untrusted(disk: Disk, folder: Path) -> None:
    """``Refused`` if the folder is a link, or if another user may write to it."""
    try:
        found = refuse_links(disk, folder)
    except Refused:
        raise Refused(f"{folder} is a symbolic link: remove it, the supervisor needs a folder here", folder) from None
    if found is not None and (why := other_writers(folder, found)):
        raise Refused(f"{why}: its content cannot be trusted; chmod 700 {folder}", folder)


# -- older folders -----------------------------------------------------------------------------------------------------


def undecided(disk: Disk, paths: Paths) -> list[Undecided]:
    """The older state folders that a person has to decide about."""
    found = [Undecided(UndecidedCode.OFFERED, Path(offer)) for offer in _offers(disk, paths.folder)]
    if _is_real(disk, paths.link):
        found.append(Undecided(UndecidedCode.FOREIGN, paths.link))
    return found


def adopt(disk: Disk, paths: Paths, folder: Path, limit_s: float) -> Path | None:
    """Take up an older state folder; the folder that it replaces, which is set aside, or None.

    The numbers of the journal, which are the tokens of claims, go on above those of both. ``Refused`` if the folder is
    a link or others may write to it, FileNotFoundError if it is missing, ``Busy`` if a daemon uses one of the two.
    Whether the project is trusted stays as it is.
    """
    with _lock(disk, paths, limit_s):
        refuse_untrusted(disk, folder)
        if not _is_real(disk, folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        for inner in paths.folders:
            refuse_untrusted(disk, folder / inner.name)
        for each in (folder, paths.folder):
            _refuse_running(disk, each)
        _take_no_word(disk, paths, folder)
        above = max(last_seq(disk, folder), last_seq(disk, paths.folder))
        _continue_above(disk, folder, above)
        offers = tuple(offer for offer in _offers(disk, paths.folder) if offer != str(folder))
        replaced = _set_aside(disk, paths.folder) if disk.status(paths.folder) is not None else None
        _move(disk, folder, paths.folder)
        _begin(disk, paths, offers)
        return replaced


def _take_no_word(disk: Disk, paths: Paths, folder: Path) -> None:
    """Put aside what an older folder says of the user's trust, of running processes, and of how to start agents.

    It may have come with a clone: only a person trusts a project, and only a daemon here sees its processes.
    """
    make_folder(disk, folder / paths.quarantine.name)
    for name in (paths.trusted.name, paths.trees.name):
        if disk.status(folder / name) is not None:
            disk.rename(folder / name, folder / paths.quarantine.name / f"{name}-adopted")
    for inner in (paths.launches, paths.starts, paths.ended):  # what they name would be started
        if disk.status(folder / inner.name) is not None:
            aside = _free_name(disk, folder / paths.quarantine.name / f"{inner.name}-adopted")
            disk.rename(folder / inner.name, aside)
    known = read_enrolment(disk, paths.folder)
    if known is not None and known.is_of(_status(disk, paths)):
        trusted = disk.read(paths.trusted)
        if trusted is not None:
            write_atomic(disk, folder / paths.trusted.name, trusted)


def dismiss(disk: Disk, paths: Paths, limit_s: float) -> list[Path]:
    """Decide against all older state folders: they stay where they are returned, and are not offered again."""
    with _lock(disk, paths, limit_s):
        kept = []
        for each in undecided(disk, paths):
            folder = each.folder
            if each.code is UndecidedCode.FOREIGN:
                _refuse_running(disk, folder)
                folder = _free_name(disk, paths.folder)
                _move(disk, each.folder, folder)
            kept.append(folder)
        _begin(disk, paths, ())
        return kept


def begin_here(disk: Disk, paths: Paths, limit_s: float) -> None:
    """Begin with a state folder of this user's, whatever the project's link leads to."""
    with _lock(disk, paths, limit_s):
        if _linked(disk, paths) is not None:
            disk.unlink(paths.link)
        _enrol(disk, paths)


def last_seq(disk: Disk, folder: Path) -> int:
    """The highest number of a line in the folder's journal; 0 if none can be read."""
    journal = folder / "journal.jsonl"
    highest = 0
    for segment in (*segments(disk, journal)[-1:], journal, journal.with_name("journal.mark")):
        with contextlib.suppress(OSError):
            data = (disk.read(segment, LIMIT) or b"").rstrip() + b"\n"
            seqs = (line.seq for line in read_lines(data) if line.seq < SEQ_LIMIT)
            highest = max(highest, *seqs, 0)
    return highest


def _continue_above(disk: Disk, folder: Path, above: int) -> None:
    """Let the next line of the folder's journal have a higher number than ``above``."""
    journal = Journal(folder / "journal.jsonl", disk, folder / "quarantine")
    try:
        journal.catch_up()
        if journal.seq < above:
            journal.index.seq = above
            journal.rotate()
    finally:
        journal.close()


def was_written_here(disk: Disk, folder: Path) -> bool:
    """Whether this user has written an old state folder on this machine, at this place.

    Its records name the machine, which a clone does not know; and its lock file was made when its journal says so. The
    kernel alone sets that time (``st_ctime``), so the files of a clone, a copy and an archive all have a later one.
    """
    found = disk.status(folder)
    if found is None or found.st_uid != os.geteuid() or other_writers(folder, found):
        return False
    return _made_when_recorded(disk, folder) and _names_machine(disk, folder)


def _made_when_recorded(disk: Disk, folder: Path) -> bool:
    made = disk.status(folder / "store.lock")
    if made is None:
        return False
    journal = folder / "journal.jsonl"
    for segment in (*segments(disk, journal), journal):
        with contextlib.suppress(OSError, ValueError):
            for line in read_lines(disk.read(segment, LIMIT) or b""):
                if isinstance(line, lines.Entry) and abs(from_iso(line.at).timestamp() - made.st_ctime) < MADE_S:
                    return True
    return False


def _names_machine(disk: Disk, folder: Path) -> bool:
    machine = backend().boot().partition("/")[0].encode() + b"/"
    if len(machine) < 8:
        return False
    records = [folder / "agents" / name for name in disk.names(folder / "agents")[:1000]]
    for path in (folder / "daemon.json", folder / "trees.json", *records, folder / "journal.jsonl"):
        with contextlib.suppress(OSError):
            if machine in (disk.read(path, LIMIT) or b"")[-EVIDENCE_LIMIT:]:
                return True
    return False


def _refuse_running(disk: Disk, folder: Path) -> None:
    """``Busy`` if a daemon supervises a project by this folder."""
    path = folder / "supervisor.lock"
    if disk.status(path) is None:
        return
    fd = disk.open(path, os.O_RDWR)
    try:
        disk.lock(fd)
    except BlockingIOError:
        raise Busy(f"a daemon uses {folder}: stop it first", path) from None
    finally:
        disk.close(fd)


def _set_aside(disk: Disk, folder: Path) -> Path:
    aside = _free_name(disk, folder)
    disk.rename(folder, aside)
    sync_folder(disk, folder.parent)
    return aside


def _all_set_aside(disk: Disk, folder: Path) -> list[Path]:
    start = f"{folder.name}~set-aside-"
    return [folder.with_name(name) for name in sorted(disk.names(folder.parent)) if name.startswith(start)]


def _free_name(disk: Disk, folder: Path) -> Path:
    """A name for a folder that is set aside. No project's state folder has such a name."""
    number = 1
    while disk.status(aside := folder.with_name(f"{folder.name}~set-aside-{number}")) is not None:
        number += 1
    return aside


def _is_real(disk: Disk, path: Path) -> bool:
    found = disk.status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _move(disk: Disk, old: Path, new: Path) -> None:
    """Move a folder; to another file system by a copy that is complete before it gets its name."""
    try:
        disk.rename(old, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = new.with_name(f"{new.name}~part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(old, part, symlinks=True)
        os.sync()
        disk.rename(part, new)
        shutil.rmtree(old)
    sync_folder(disk, new.parent)
