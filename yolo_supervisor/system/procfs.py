"""The process backend for Linux: ``/proc`` and pidfds."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import MAX_PID, FileId, ProcessFacts, ProcessHandle, file_id


class PidfdHandle:
    """A pidfd. It refers to one process for ever, also after another one has got the pid."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def signal(self, number: int) -> bool:
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            return False
        return True

    def over(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        os.close(self.fd)

    def exit(self) -> int | None:
        """The wait status of the process; None if the kernel (before 6.15) does not report it."""
        for _ in range(2):  # it may be reaped between the two reads
            try:
                info = fcntl.ioctl(self.fd, PIDFD_GET_INFO, PIDFD_INFO_EXIT.to_bytes(8, sys.byteorder) + bytes(56))
            except OSError:
                return None
            mask, pid = int.from_bytes(info[:8], sys.byteorder), int.from_bytes(info[16:20], sys.byteorder)
            if mask & PIDFD_INFO_EXIT:
                return int.from_bytes(info[60:64], sys.byteorder)
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] == b"Z":
                    return int(fields[49])
        return None


PF_EXITING = 0x4
"""The flag of a task that has begun to end."""

PIDFD_GET_INFO = 0xC0_40_FF_0B
PIDFD_INFO_EXIT = 1 << 3

SO_ACCEPTCON = 1 << 16
"""The flag of a listening socket in ``/proc/net/unix``."""

FOLDERS_AT_MOST = 100
"""The number of folders above a working folder that are compared."""


class ProcfsBackend:
    """Reads ``/proc``, and opens pidfds."""

    def __init__(self) -> None:
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")

    def boot(self) -> str:
        try:
            machine = Path("/etc/machine-id").read_text().strip()
        except OSError:
            machine = ""
        if machine in ("", "uninitialized"):
            machine = os.uname().nodename
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{machine}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"

    def facts(self, pid: int) -> ProcessFacts | None:
        if not 0 < pid <= MAX_PID:
            return None
        try:
            data = self._read(pid, "stat")
        except (FileNotFoundError, ProcessLookupError):
            return None if self._gone(pid) else self._hidden(pid)
        head, _, tail = data.rpartition(b")")
        fields = tail.split()
        zombie = fields[0] in (b"Z", b"X", b"x") and self._last_thread(pid)
        comm = head.partition(b"(")[2].decode("utf-8", "replace")
        used = int(fields[11]) + int(fields[12])
        parent, session, terminal, started = (int(fields[number]) for number in (1, 3, 4, 19))
        ending = bool(int(fields[6]) & PF_EXITING) and self._last_thread(pid)
        return ProcessFacts(pid, parent, started, zombie, comm, used, session, fields[0] == b"T", terminal, ending)

    def _gone(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return not Path(f"/proc/{pid}").exists() and self._gone_now(pid)

    def _gone_now(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    def _hidden(self, pid: int) -> ProcessFacts:
        raise OSError(errno.EACCES, "the process is hidden from us", f"/proc/{pid}")

    def _last_thread(self, pid: int) -> bool:
        """Whether no other thread runs: a leader that ended before them looks like a zombie."""
        try:
            return len(os.listdir(f"/proc/{pid}/task")) <= 1
        except OSError:
            return True

    def _read(self, pid: int, name: str) -> bytes:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = part = os.read(fd, 65536)
            while len(part) == 65536:
                part = os.read(fd, 65536)
                data += part
            return data
        finally:
            os.close(fd)

    def pids(self) -> list[int]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]

    def started_at(self, started: int) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started / self._ticks_per_s

    def same_start(self, started: int, text: str) -> bool:
        return text == str(started)

    def owner(self, pid: int) -> int:
        return os.stat(f"/proc/{pid}").st_uid

    def argv(self, pid: int) -> list[str]:
        return [word.decode("utf-8", "replace") for word in self.words(pid)]

    def words(self, pid: int) -> list[bytes]:
        return self._read(pid, "cmdline").split(b"\0")[:-1]

    def environment(self, pid: int) -> dict[str, str]:
        pairs = (entry.decode("utf-8", "replace").partition("=") for entry in self._read(pid, "environ").split(b"\0"))
        return {key: value for key, separator, value in pairs if separator}

    def folder(self, pid: int) -> str:
        return os.readlink(f"/proc/{pid}/cwd")

    def executable(self, pid: int) -> str:
        return os.readlink(f"/proc/{pid}/exe")

    def ignores(self, pid: int, number: int) -> bool:
        for line in self._read(pid, "status").splitlines():
            name, _, mask = line.partition(b":")
            if name == b"SigIgn":
                return bool(int(mask, 16) >> (number - 1) & 1)
        return True

    def folder_ids(self, pid: int) -> list[FileId]:
        path, ids = f"/proc/{pid}/cwd", [file_id(f"/proc/{pid}/cwd")]
        while len(ids) < FOLDERS_AT_MOST:  # ".." of the root is the root itself
            path += "/.."
            if (above := file_id(path)) == ids[-1]:
                break
            ids.append(above)
        return ids

    def file_id(self, pid: int, name: str) -> FileId:
        return file_id(f"/proc/{pid}/root{name}" if name.startswith("/") else f"/proc/{pid}/cwd/{name}")

    def writes_to(self, pid: int, path: Path, file: FileId) -> bool:
        folder = f"/proc/{pid}/fd"
        for name in os.listdir(folder):
            try:
                if os.path.basename(os.readlink(f"{folder}/{name}")) != path.name:  # a stat may wait for a file server
                    continue
                if file_id(f"{folder}/{name}") != file or not self._is_writable(pid, name):
                    continue
                if file_id(f"{folder}/{name}") == file:  # the number may belong to another file by now
                    return True
            except FileNotFoundError:  # closed meanwhile
                continue
        return False

    def watched(self, pid: int) -> frozenset[FileId]:
        folder = f"/proc/{pid}/fd"
        found: set[FileId] = set()
        for name in os.listdir(folder):
            try:
                if os.readlink(f"{folder}/{name}") == "anon_inode:inotify":
                    found.update(_watches(self._read(pid, f"fdinfo/{name}")))
            except FileNotFoundError:  # closed meanwhile
                continue
        return frozenset(found)

    def listens(self, pid: int) -> bool:
        listening = set()
        for line in self._read(pid, "net/unix").splitlines()[1:]:
            fields = line.split()
            if int(fields[3], 16) & SO_ACCEPTCON:
                listening.add(b"socket:[%s]" % fields[6])
        folder = f"/proc/{pid}/fd"
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.fsencode(os.readlink(f"{folder}/{name}")) in listening:
                    return True
        return False

    def _is_writable(self, pid: int, fd: str) -> bool:
        for line in self._read(pid, f"fdinfo/{fd}").splitlines():
            name, _, flags = line.partition(b":")
            if name == b"flags":
                return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
        return True

    def hold(self, process: ProcessId) -> ProcessHandle | None:
        try:
            fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL and self.facts(process.pid) is None:
                return None  # the kernel answers EINVAL for a process that is just ending
            raise
        try:
            facts = self.facts(process.pid)  # after the open, since the descriptor keeps its process from then on
        except OSError:
            os.close(fd)
            raise
        if facts is None or facts.started != process.started or facts.zombie:
            os.close(fd)
            return None
        return PidfdHandle(fd)

    def newest(self) -> int | None:
        try:
            with open("/proc/loadavg", "rb", buffering=0) as file:
                return int(file.read().rsplit(None, 1)[1])
        except (OSError, ValueError, IndexError):
            return None

    def signal_sessions(self, sessions: Collection[int], number: int) -> tuple[int, ...]:
        return signal_sessions(sessions, number)


INITIAL_PIDS = 0xEFFFFFFC
"""The inode of the initial pid namespace, whose pids the kernel log uses."""


def _watches(fdinfo: bytes) -> Iterator[FileId]:
    """The files in the kernel's lines about an inotify descriptor, such as ``inotify wd:1 ino:2a sdev:800003``.

    The minor part of a device number has 20 bits there.
    """
    for line in fdinfo.splitlines():
        if line.startswith(b"inotify "):
            values = dict(word.split(b":", 1) for word in line.split()[1:] if b":" in word)
            device = int(values[b"sdev"], 16)
            yield FileId(os.makedev(device >> 20, device & 0xFFFFF), int(values[b"ino"], 16))


def signal_sessions(sessions: Collection[int], number: int) -> tuple[int, ...]:
    """Signal all process groups in the sessions; the sessions in which there is a process.

    The kernel signals all members of a group at one moment, and with them a child that is being forked. A process in
    the session keeps the group's number from being reused.
    """
    if not sessions or sys.platform != "linux":
        return ()
    groups: dict[int, int] = {}
    for pid in reversed([int(name) for name in os.listdir("/proc") if name.isdigit()]):
        with contextlib.suppress(OSError):
            session, group = os.getsid(pid), os.getpgid(pid)
            if session in sessions and group not in groups and _runs(pid):
                groups[group] = session
                os.killpg(group, number)
    return tuple(sorted({*groups.values()}))


def _runs(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
