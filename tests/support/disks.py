"""A disk in memory that models power cuts, and disks that fail.

On ``MemoryDisk`` the data of a file is durable by a sync of that file, a name (made, changed, removed) by a sync of its
folder, and by nothing else. All that is not durable is a list of *pieces*; a crash leaves any of them, or none.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import stat
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from yolo_supervisor.fs.read import LIMIT
from yolo_supervisor.store.disk import FILE_MODE, FOLDER_MODE, Disk
from yolo_supervisor.store.store import Store

Model = Literal["posix", "ext4"]
"""``posix``: any of the pieces. ``ext4``: names in their order; a file's writes in their order, data before size."""

CUTS = (0.05, 0.25, 0.5, 0.75, 0.95)
BLOCKS = (512, 4096)
TINY = 64
"""A write of no more bytes than this is cut in the middle only."""

ALL_UP_TO = 12
"""The number of pieces that are tried in every combination; of more, the likeliest and some by chance."""

CHANCES = 200
EPOCH_NS = 1_700_000_000 * 10**9


class Piece(NamedTuple):
    """A change that is not durable yet: a new size, some bytes, or a change of names in a folder."""

    node: int
    step: int
    kind: Literal["size", "data", "names"]
    at: int = 0
    data: bytes = b""
    names: tuple[tuple[str, int | None], ...] = ()


class Node:
    """A file or a folder: the content that programs see, and (``kept``) the durable one."""

    __slots__ = ("changed", "data", "folder", "kept", "kept_changed", "kept_names", "mode", "names", "number")

    def __init__(self, number: int, folder: bool, mode: int, changed: int) -> None:
        self.number = number
        self.folder = folder
        self.mode = mode
        self.changed = self.kept_changed = changed
        self.data = self.kept = b""
        self.names: dict[str, int] = {}
        self.kept_names: dict[str, int] = {}

    def copy(self) -> Node:
        made = Node(self.number, self.folder, self.mode, self.changed)
        made.kept_changed = self.kept_changed
        made.data, made.kept = self.data, self.kept
        if self.folder:
            made.names, made.kept_names = dict(self.names), dict(self.kept_names)
        return made


def applied(data: bytes, pieces: Iterable[Piece]) -> bytes:
    """The content with the pieces in it. A size without its data reads as NULs; data beyond the size is not seen."""
    for piece in pieces:
        if piece.kind == "size":
            data = data[: piece.at].ljust(piece.at, b"\0")
        elif piece.at < len(data):
            part = piece.data[: len(data) - piece.at]
            data = data[: piece.at] + part + data[piece.at + len(part) :]
    return data


def renamed(names: dict[str, int], pieces: Iterable[Piece]) -> dict[str, int]:
    """The names of a folder with the changes made to them."""
    names = dict(names)
    for piece in pieces:
        for name, number in piece.names:
            if number is None:
                names.pop(name, None)
            else:
                names[name] = number
    return names


def _refuse(number: int, path: Path | str = "") -> OSError:
    return OSError(number, os.strerror(number), str(path))


class MemoryDisk(Disk):
    """A whole POSIX disk in memory, with no links but hard ones. It is as if just mounted: ``/`` is empty."""

    def __init__(self) -> None:
        self.nodes = {1: Node(1, True, 0o755, EPOCH_NS)}
        self.pieces: list[Piece] = []
        self.log: list[tuple[str, Any]] = []
        """Every operation and its first argument."""
        self.changes = 0
        """The number of operations that have changed something."""
        self.tag: Any = None
        """The test's knowledge at this moment; a copy has it too."""
        self.moments: list[MemoryDisk] | None = None
        """If set, gets a copy of the disk after each change."""
        self._fds: dict[int, tuple[int, int]] = {}
        self._locks: dict[int, int] = {}
        self._next = 2
        self._next_fd = 1000
        self._step = 0

    # -- for tests ---------------------------------------------------------------------------------------------------

    @property
    def open_fds(self) -> int:
        return len(self._fds)

    def copy(self) -> MemoryDisk:
        """The disk as the next process finds it if all others are killed now: nothing is lost, nothing flushed."""
        made = MemoryDisk()
        made.nodes = {number: node.copy() for number, node in self.nodes.items()}
        made.pieces = list(self.pieces)
        made.tag = self.tag
        made._next, made._step = self._next, self._step
        return made

    def settle(self) -> None:
        """Make everything durable."""
        for node in self.nodes.values():
            node.kept, node.kept_names, node.kept_changed = node.data, dict(node.names), node.changed
        self.pieces.clear()

    def write_back(self, chance: random.Random) -> None:
        """Make something durable, as the kernel does at any time."""
        if self.pieces:
            self.flush(self.nodes[chance.choice(self.pieces).node])

    def put(self, path: Path, data: bytes | None) -> None:
        """Make ``data`` the content of the file (None: remove it) as another program, at once and durably."""
        folder = self._folder_of(path)
        for names in (folder.names, folder.kept_names):
            names.pop(path.name, None)
        if data is not None:
            node = self._make(False, FILE_MODE)
            node.data = node.kept = data
            folder.names[path.name] = folder.kept_names[path.name] = node.number

    def content(self, path: Path) -> bytes | None:
        number = self._find(path)
        return None if number is None else self.nodes[number].data

    def files(self) -> Iterator[tuple[str, Node]]:
        """Every file with its path."""
        yield from self._files("", self.nodes[1])

    def _files(self, prefix: str, folder: Node) -> Iterator[tuple[str, Node]]:
        for name, number in folder.names.items():
            node = self.nodes[number]
            if node.folder:
                yield from self._files(f"{prefix}/{name}", node)
            else:
                yield f"{prefix}/{name}", node

    # -- the primitive operations --------------------------------------------------------------------------------------

    def step(self, name: str, first: object) -> None:
        """Runs before every operation; a subclass may interfere."""
        self.log.append((name, first))

    def open(self, path: Path, flags: int, mode: int = FILE_MODE) -> int:
        self.step("open", path)
        folder = self._folder_of(path)
        number = folder.names.get(path.name) if path.name else 1
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if number is None:
            if not flags & os.O_CREAT:
                raise _refuse(errno.ENOENT, path)
            number = self._make(False, mode).number
            self._name(folder, (path.name, number))
        else:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise _refuse(errno.EEXIST, path)
            node = self.nodes[number]
            if node.folder and (writing or flags & os.O_CREAT):
                raise _refuse(errno.EISDIR, path)
            if flags & os.O_DIRECTORY and not node.folder:
                raise _refuse(errno.ENOTDIR, path)
            if flags & os.O_TRUNC and writing and node.data:
                self._resize(node, 0)
        self._next_fd += 1
        self._fds[self._next_fd] = number, flags
        return self._next_fd

    def close(self, fd: int) -> None:
        self.step("close", fd)
        self.forget(fd)

    def forget(self, fd: int) -> None:
        """Close the file, as the kernel does even if it reports an error."""
        node = self._opened(fd)
        del self._fds[fd]
        if self._locks.get(node.number) == fd:
            del self._locks[node.number]

    def write(self, fd: int, data: bytes) -> int:
        self.step("write", fd)
        return self.written(fd, data)

    def written(self, fd: int, data: bytes) -> int:
        node = self._opened(fd, writing=True)
        # the store only ever appends, or writes a new file from its beginning: so both are at the end
        return self._put(node, data, len(node.data))

    def write_at(self, fd: int, data: bytes, at: int) -> int:
        self.step("write_at", fd)
        return self._put(self._opened(fd, writing=True), data, at)

    def truncate(self, fd: int, size: int) -> None:
        self.step("truncate", fd)
        self._resize(self._opened(fd, writing=True), size)

    def sync(self, fd: int) -> None:
        self.step("sync", fd)
        self.flush(self._opened(fd))

    def flush(self, node: Node) -> None:
        """Make all pieces durable. Pieces that an earlier, failed flush has dropped stay lost."""
        mine = [piece for piece in self.pieces if piece.node == node.number]
        if node.folder:
            node.kept_names = renamed(node.kept_names, mine)
        else:
            node.kept, node.kept_changed = applied(node.kept, mine), node.changed
        self.lose(node)

    def lose(self, node: Node) -> None:
        """Mark all pieces clean without making them durable, as a failed flush does."""
        self.pieces = [piece for piece in self.pieces if piece.node != node.number]
        self._changed()

    def chmod(self, fd: int, mode: int) -> None:
        self.step("chmod", fd)
        self._opened(fd).mode = mode

    def rename(self, old: Path, new: Path) -> None:
        self.step("rename", old)
        folder, number = self._folder_of(old), self._there(old)
        if self._folder_of(new) is not folder:
            raise NotImplementedError("between folders")
        node, found = self.nodes[number], self._find(new)
        if found == number:
            return
        if found is not None:
            over = self.nodes[found]
            if over.folder and not node.folder:
                raise _refuse(errno.EISDIR, new)
            if node.folder and not over.folder:
                raise _refuse(errno.ENOTDIR, new)
            if over.names:
                raise _refuse(errno.ENOTEMPTY, new)
        self._name(folder, (old.name, None), (new.name, number))

    def exchange(self, one: Path, other: Path) -> None:
        self.step("exchange", one)
        folder, numbers = self._folder_of(one), (self._there(one), self._there(other))
        if self._folder_of(other) is not folder:
            raise NotImplementedError("between folders")
        self._name(folder, (one.name, numbers[1]), (other.name, numbers[0]))

    def chown(self, fd: int, user: int, group: int) -> None:
        raise NotImplementedError("one user has all")

    def attributes(self, path: Path) -> dict[str, bytes]:
        self.step("attributes", path)
        return {}

    def link(self, old: Path, new: Path) -> None:
        self.step("link", old)
        number = self._there(old)
        if self.nodes[number].folder:
            raise _refuse(errno.EPERM, old)
        if self._find(new) is not None:
            raise _refuse(errno.EEXIST, new)
        self._name(self._folder_of(new), (new.name, number))

    def symlink(self, target: Path, path: Path) -> None:
        raise _refuse(errno.EPERM, path)

    def unlink(self, path: Path) -> None:
        self.step("unlink", path)
        if self.nodes[self._there(path)].folder:
            raise _refuse(errno.EISDIR, path)
        self._name(self._folder_of(path), (path.name, None))

    def mkdir(self, path: Path, mode: int = FOLDER_MODE) -> None:
        self.step("mkdir", path)
        folder = self._folder_of(path)
        if path.name in folder.names:
            raise _refuse(errno.EEXIST, path)
        self._name(folder, (path.name, self._make(True, mode).number))

    def rmdir(self, path: Path) -> None:
        self.step("rmdir", path)
        node = self.nodes[self._there(path)]
        if not node.folder:
            raise _refuse(errno.ENOTDIR, path)
        if node.names:
            raise _refuse(errno.ENOTEMPTY, path)
        self._name(self._folder_of(path), (path.name, None))

    def read(self, path: Path, limit: int = LIMIT) -> bytes | None:
        self.step("read", path)
        number = self._find(path)
        if number is None:
            return None
        node = self.nodes[number]
        if node.folder:
            raise OSError(errno.EINVAL, "not an ordinary file", str(path))
        if len(node.data) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
        return node.data

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        self.step("read_at", fd)
        node = self._opened(fd)
        if node.folder:
            raise _refuse(errno.EISDIR)
        return node.data[at : at + size]

    def status(self, path: Path) -> os.stat_result | None:
        self.step("status", path)
        number = self._find(path)
        return None if number is None else self._status(self.nodes[number])

    def status_of(self, fd: int) -> os.stat_result:
        self.step("status_of", fd)
        return self._status(self._opened(fd))

    def names(self, folder: Path) -> list[str]:
        self.step("names", folder)
        number = self._find(folder)
        if number is None:
            return []
        if not self.nodes[number].folder:
            raise _refuse(errno.ENOTDIR, folder)
        return list(self.nodes[number].names)

    def lock(self, fd: int) -> None:
        self.step("lock", fd)
        holder = self._locks.setdefault(self._opened(fd).number, fd)
        if holder != fd:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def unlock(self, fd: int) -> None:
        self.step("unlock", fd)
        number = self._opened(fd).number
        if self._locks.get(number) == fd:
            del self._locks[number]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _find(self, path: Path) -> int | None:
        number = 1
        for name in path.parts[1:]:
            found = self.nodes[number].names.get(name)
            if found is None:
                return None
            number = found
        return number

    def _there(self, path: Path) -> int:
        self._folder_of(path)
        if (number := self._find(path)) is None:
            raise _refuse(errno.ENOENT, path)
        return number

    def _folder_of(self, path: Path) -> Node:
        node = self.nodes[1]
        for name in path.parts[1:-1]:
            number = node.names.get(name)
            if number is None:
                raise _refuse(errno.ENOENT, path)
            node = self.nodes[number]
            if not node.folder:
                raise _refuse(errno.ENOTDIR, path)
        return node

    def _opened(self, fd: int, writing: bool = False) -> Node:
        if fd not in self._fds or (writing and self._fds[fd][1] & os.O_ACCMODE == os.O_RDONLY):
            raise _refuse(errno.EBADF)
        return self.nodes[self._fds[fd][0]]

    def _make(self, folder: bool, mode: int) -> Node:
        self._step += 1
        node = Node(self._next, folder, mode, EPOCH_NS + self._step)
        self.nodes[self._next] = node
        self._next += 1
        return node

    def _status(self, node: Node) -> os.stat_result:
        mode = node.mode | (stat.S_IFDIR if node.folder else stat.S_IFREG)
        seconds = node.changed // 10**9
        return os.stat_result(
            (mode, node.number, 7, 1, 0, 0, len(node.data), seconds, seconds, seconds),
            {"st_mtime": node.changed / 10**9, "st_mtime_ns": node.changed, "st_ctime_ns": node.changed},
        )

    def _name(self, folder: Node, *names: tuple[str, int | None]) -> None:
        self._step += 1
        piece = Piece(folder.number, self._step, "names", names=names)
        folder.names = renamed(folder.names, (piece,))
        folder.changed = EPOCH_NS + self._step
        self.pieces.append(piece)
        self._changed()

    def _resize(self, node: Node, size: int) -> None:
        self._step += 1
        piece = Piece(node.number, self._step, "size", at=size)
        node.data, node.changed = applied(node.data, (piece,)), EPOCH_NS + self._step
        self.pieces.append(piece)
        self._changed()

    def _put(self, node: Node, data: bytes, at: int) -> int:
        self._step += 1
        end, made = at + len(data), []
        if end > len(node.data):
            made.append(Piece(node.number, self._step, "size", at=end))
        cuts = {int(len(data) * part) for part in (CUTS if len(data) > TINY else (0.5,))} | {len(data)}
        cuts |= {block - at % block for block in BLOCKS}
        begin = 0
        for cut in sorted(cut for cut in cuts if 0 < cut <= len(data)):
            made.append(Piece(node.number, self._step, "data", at=at + begin, data=data[begin:cut]))
            begin = cut
        node.data, node.changed = applied(node.data, made), EPOCH_NS + self._step
        self.pieces += made
        self._changed()
        return len(data)

    def _changed(self) -> None:
        self.changes += 1
        if self.moments is not None:
            self.moments.append(self.copy())


# -- crash states ----------------------------------------------------------------------------------------------------


class CrashState(NamedTuple):
    """One state of the disk after a power cut; equal keys are equal disks."""

    key: Hashable
    disk: MemoryDisk
    folders: dict[int, dict[str, int]]
    contents: dict[int, bytes]
    changed: dict[int, int]

    def mount(self) -> MemoryDisk:
        """A separate disk in this state, all of it durable."""
        made = MemoryDisk()
        made.tag = self.disk.tag
        made._next, made._step = self.disk._next, self.disk._step
        for number, names in self.folders.items():
            node = self.disk.nodes[number].copy()
            node.names, node.kept_names = dict(names), dict(names)
            made.nodes[number] = node
        for number, data in self.contents.items():
            node = self.disk.nodes[number].copy()
            node.data = node.kept = data
            node.changed = node.kept_changed = self.changed[number]
            made.nodes[number] = node
        return made


def crash_states(disk: MemoryDisk, model: Model, chance: random.Random, chances: int = CHANCES) -> Iterator[CrashState]:
    """The states in which a power cut at this moment may leave the disk, with repetitions; first that in which all
    is lost. Without ``chances`` only the likeliest: up to some piece, all but one, one alone."""
    choices = _subsets(len(disk.pieces), chance, chances) if model == "posix" else _in_order(disk, chance, chances)
    pieces = disk.pieces
    mine: dict[int, int] = {}
    for bit, piece in enumerate(pieces):
        mine[piece.node] = mine.get(piece.node, 0) | 1 << bit
    folders = 0
    for number, bits in mine.items():
        if disk.nodes[number].folder:
            folders |= bits
    trees: dict[int, tuple[Hashable, dict[int, dict[str, int]], list[int]]] = {}
    contents: dict[tuple[int, int], bytes] = {}

    def chosen(bits: int) -> list[Piece]:
        return [piece for bit, piece in enumerate(pieces) if bits >> bit & 1]

    for choice in choices:
        named = choice & folders
        if named not in trees:
            trees[named] = _tree(disk, chosen(named))
        tree, names, files = trees[named]
        found: dict[int, bytes] = {}
        changed: dict[int, int] = {}
        for number in files:
            node = disk.nodes[number]
            if (all_bits := mine.get(number, 0)) == 0:
                found[number], changed[number] = node.kept, node.kept_changed
                continue
            bits = choice & all_bits
            if (number, bits) not in contents:
                contents[number, bits] = applied(node.kept, chosen(bits))
            found[number] = contents[number, bits]
            changed[number] = node.changed if bits else node.kept_changed
        yield CrashState((tree, tuple(found.values()), tuple(changed.values())), disk, names, found, changed)


def _tree(disk: MemoryDisk, pieces: list[Piece]) -> tuple[Hashable, dict[int, dict[str, int]], list[int]]:
    """The folders with their names, and the files, that are reachable after just these changes of names."""
    folders: dict[int, dict[str, int]] = {}
    files: set[int] = set()
    todo = [1]
    while todo:
        number = todo.pop()
        node = disk.nodes[number]
        if not node.folder:
            files.add(number)
        elif number not in folders:
            folders[number] = renamed(node.kept_names, [piece for piece in pieces if piece.node == number])
            todo += folders[number].values()
    key = frozenset((number, name, to) for number, names in folders.items() for name, to in names.items())
    return key, folders, sorted(files)


def _subsets(count: int, chance: random.Random, chances: int) -> Iterable[int]:
    if count <= (ALL_UP_TO if chances else 2):
        return range(1 << count)
    every = (1 << count) - 1
    found = {(1 << n) - 1 for n in range(count + 1)}
    for few in (0, 1, 2) if chances else (0, 1):
        for which in itertools.combinations(range(count), few):
            present = sum(1 << n for n in which)
            found |= {present, every ^ present}
    found |= {chance.getrandbits(count) for _ in range(chances)}
    return sorted(found)


def _in_order(disk: MemoryDisk, chance: random.Random, chances: int) -> Iterator[int]:
    """Names up to some moment; of each file the writes up to some moment, whole where they change its size."""
    sized = {piece.step for piece in disk.pieces if piece.kind == "size"}
    lines: dict[int, list[int]] = {}
    steps: dict[int, int] = {}
    for bit, piece in enumerate(disk.pieces):
        line = 0 if piece.kind == "names" else piece.node
        ways = lines.setdefault(line, [0])
        way = ways[-1] | 1 << bit
        if piece.step in sized and steps.get(line) == piece.step:
            ways[-1] = way
        else:
            ways.append(way)
        steps[line] = piece.step
    some = 4 * chances or 20
    if math.prod(map(len, lines.values())) <= some:
        yield from map(sum, itertools.product(*lines.values()))
    else:
        for _ in range(some):
            yield sum(chance.choice(ways) for ways in lines.values())


# -- disks that fail -------------------------------------------------------------------------------------------------

Mode = Literal["once", "on", "short"]
"""The failure of a disk: once, from there on, or a write that is cut short and an error after it."""


class FaultyDisk(MemoryDisk):
    """A disk whose n-th operation fails, until ``repaired`` is set.

    A flush that fails marks the file's pages clean, as Linux does; a folder's stay dirty, its file system is stopped
    by such an error in reality. A file whose closing fails is closed.
    """

    def __init__(self, at: int, number: int, mode: Mode) -> None:
        super().__init__()
        self.repaired = True
        self.calls = 0
        self.failed = ""
        """The first operation that failed."""
        self._at = at
        self._number = number
        self._mode = mode

    @property
    def reached(self) -> bool:
        return self.calls >= self._at + (self._mode == "short")

    def step(self, name: str, first: object) -> None:
        super().step(name, first)
        if self.repaired or name == "unlock":  # the kernel never refuses to take a lock back
            return
        self.calls += 1
        past = self.calls - self._at
        if past == (self._mode == "short") or (self._mode == "on" and past > 0):
            self.failed = self.failed or f"{name} {first}"
            raise _refuse(self._number, f"{name} {first}")

    def written(self, fd: int, data: bytes) -> int:
        short = self._mode == "short" and not self.repaired and self.calls == self._at
        return super().written(fd, data[: len(data) // 2] if short else data)

    def close(self, fd: int) -> None:
        try:
            super().close(fd)
        except OSError:
            if fd in self._fds:
                self.forget(fd)
            raise

    def sync(self, fd: int) -> None:
        try:
            super().sync(fd)
        except OSError:
            node = self._opened(fd)
            if not node.folder:
                self.lose(node)
            raise


def use_disk(store: Store, disk: Disk) -> None:
    """Let the store go on with another disk."""
    store.disk = store.journal._disk = store.documents.disk = store._backups.disk = disk
