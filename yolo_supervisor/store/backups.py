"""Contents by their digests: good versions of documents, and what is too large for a line of the journal."""

from __future__ import annotations

import base64
import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

from yolo_supervisor.fs.read import digest
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.lines import Write

INLINE = 256 * 1024
"""A content larger than this, in bytes, is not written into the journal but to a file."""


class Backups:
    """The folder of the contents. A file's name is the digest of what is in it."""

    def __init__(self, disk: Disk, folder: Path, quarantine: Path) -> None:
        self.disk = disk
        self._folder = folder
        self._quarantine = quarantine

    def put(self, data: bytes) -> str:
        """Store the content. Returns its digest."""
        return self._put(self._folder, data)

    def whole(self, digests: Iterable[str]) -> Iterator[bytes]:
        """The contents with these digests, as far as they are there and undamaged."""
        for name in digests:
            data = self._read_or_none(self._folder / name)
            if data is not None and digest(data) == name:
                yield data

    def remove(self, digests: Iterable[str]) -> None:
        """Remove contents. It may fail, and is silent then."""
        for name in digests:
            with contextlib.suppress(OSError):
                self.disk.unlink(self._folder / name)

    # -- contents of promises ----------------------------------------------------------------------------------------

    def promise_fields(self, before: bytes | None, after: bytes | None) -> dict[str, str]:
        """The fields of ``Write`` that hold the new content of a document, or the one that is removed."""
        if after is not None:
            return self._fields("content", self._folder, after)
        return self._fields("removed", self._quarantine, before) if before is not None else {}

    def promised(self, write: Write) -> bytes | None:
        """The new content that a promise holds, None to remove the document. OSError if its file is not there."""
        if write.content is not None:
            return write.content.encode()
        if write.content_base64 is not None:
            return base64.b64decode(write.content_base64)
        if write.content_in is None:
            return None
        path = self._folder / write.content_in
        data = self.disk.read(path)
        if digest(data) != write.content_in:
            raise OSError(errno.ENODATA, "the promised content is gone", str(path))
        return data

    def _fields(self, name: str, folder: Path, data: bytes) -> dict[str, str]:
        if len(data) > INLINE:
            return {f"{name}_in": self._put(folder, data)}
        try:
            return {name: data.decode()}
        except UnicodeDecodeError:
            return {f"{name}_base64": base64.b64encode(data).decode()}

    def _put(self, folder: Path, data: bytes) -> str:
        name = str(digest(data))
        if self._read_or_none(folder / name) != data:
            write_atomic(self.disk, folder / name, data)
        return name

    def _read_or_none(self, path: Path) -> bytes | None:
        try:
            return self.disk.read(path)
        except OSError:
            return None
