"""What we ask of the operating system about processes: facts, and a hold on one that no other can slip into."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from yolo_supervisor.records import ProcessId

MAX_PID = 2**31 - 1
"""What a pid can be at all, for the calls that take one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the kernel says of one process."""

    pid: int
    parent: int
    started: int
    zombie: bool
    comm: str
    cpu: int = 0
    """The processor time that it has used, in clock ticks."""
    session: int = 0
    """The pid of its session's leader; 0 where the kernel does not say."""


class Handle(Protocol):
    """A hold on one process that no other can slip into."""

    def signal(self, number: int) -> bool:
        """Send the signal; False if the process is over."""

    def over(self) -> bool: ...

    def close(self) -> None: ...


class Kernel(Protocol):
    """What we ask of the operating system. ``OSError`` means that it did not answer: unknown, not gone."""

    def boot(self) -> str:
        """The world in which pids and start times mean something: machine, boot, pid namespace."""

    def facts(self, pid: int) -> Facts | None:
        """The process with this pid, None if there is none."""

    def pids(self) -> list[int]: ...

    def started_at(self, started: int) -> float:
        """The start time as seconds since the epoch."""

    def same_start(self, started: int, text: str) -> bool:
        """Whether ``text`` is how Claude Code spells this start time."""

    def owner(self, pid: int) -> int:
        """The user id the process runs as."""

    def argv(self, pid: int) -> list[str]: ...

    def environment(self, pid: int) -> dict[str, str]: ...

    def folder(self, pid: int) -> str: ...

    def executable(self, pid: int) -> str: ...

    def has_open(self, pid: int, path: Path) -> bool:
        """Whether the process has the file open."""

    def hold(self, process: ProcessId) -> Handle | None:
        """A handle on the process; None if it is over."""

    def newest(self) -> int | None:
        """The pid given out last, where that is cheap to know: unchanged, it proves that nothing was started."""


# -- Linux ------------------------------------------------------------------------------------------------------


class LinuxHandle:
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
        """How the process ended, as ``waitpid`` would tell its parent; None if the kernel (before 6.15) does not."""
        for _ in range(2):  # it may be reaped while we look
            try:
                told = fcntl.ioctl(self.fd, PIDFD_GET_INFO, PIDFD_INFO_EXIT.to_bytes(8, sys.byteorder) + bytes(56))
            except OSError:
                return None
            mask, pid = int.from_bytes(told[:8], sys.byteorder), int.from_bytes(told[16:20], sys.byteorder)
            if mask & PIDFD_INFO_EXIT:
                return int.from_bytes(told[60:64], sys.byteorder)
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] == b"Z":
                    return int(fields[49])
        return None


PIDFD_GET_INFO = 0xC0_40_FF_0B
PIDFD_INFO_EXIT = 1 << 3


class LinuxKernel:
    """``/proc`` and pidfds."""

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

    def facts(self, pid: int) -> Facts | None:
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
        return Facts(pid, int(fields[1]), int(fields[19]), zombie, comm, used, int(fields[3]))

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

    def _hidden(self, pid: int) -> Facts:
        raise OSError(errno.EACCES, "the process is hidden from us", f"/proc/{pid}")

    def _last_thread(self, pid: int) -> bool:
        """A leader that ended before its threads looks like a zombie while the process lives on."""
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
        return [word.decode("utf-8", "replace") for word in self._read(pid, "cmdline").split(b"\0")[:-1]]

    def environment(self, pid: int) -> dict[str, str]:
        pairs = (entry.decode("utf-8", "replace").partition("=") for entry in self._read(pid, "environ").split(b"\0"))
        return {key: value for key, found, value in pairs if found}

    def folder(self, pid: int) -> str:
        return os.readlink(f"/proc/{pid}/cwd")

    def executable(self, pid: int) -> str:
        return os.readlink(f"/proc/{pid}/exe")

    def has_open(self, pid: int, path: Path) -> bool:
        folder, wanted = f"/proc/{pid}/fd", str(path)
        for name in os.listdir(folder):
            try:
                if os.readlink(f"{folder}/{name}") == wanted:
                    return True
            except FileNotFoundError:  # closed meanwhile
                continue
        return False

    def hold(self, process: ProcessId) -> Handle | None:
        try:
            fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL and self.facts(process.pid) is None:
                return None  # the kernel says EINVAL for a process that is just going
            raise
        try:
            found = self.facts(process.pid)  # after the open: from here on the descriptor means this very process
        except OSError:
            os.close(fd)
            raise
        if found is None or found.started != process.started or found.zombie:
            os.close(fd)
            return None
        return LinuxHandle(fd)

    def newest(self) -> int | None:
        try:
            with open("/proc/loadavg", "rb", buffering=0) as file:
                return int(file.read().rsplit(None, 1)[1])
        except (OSError, ValueError, IndexError):
            return None


INITIAL_PIDS = 0xEFFFFFFC
"""The inode of the pid namespace that the kernel's own log speaks of."""


class KernelLog:
    """What the kernel's log tells of processes that it killed for memory, where we may read it."""

    TOLD = re.compile(rb"[^,;]*,[^,;]*,(\d+),[^;]*;([^\n]*(?:[Kk]illed|oom_reaper: reaped) process (\d+)\b[^\n]*)")
    AT_ONCE = 20_000
    """How many records are read in one go at most."""

    def __init__(self) -> None:
        self._fd = -1
        self._kills: dict[int, tuple[int, str]] = {}
        """By pid, when (in microseconds since boot), and the line."""

    def killed(self, process: ProcessId) -> str | None:
        """The line that tells of this very process; None if there is none, or nothing can be known."""
        if sys.platform != "linux" or not process.boot.endswith(f"/{INITIAL_PIDS}"):
            return None
        self._read()
        at_us, line = self._kills.get(process.pid, (0, ""))
        started_us = process.started * 1_000_000 // os.sysconf("SC_CLK_TCK")
        return line if line and at_us >= started_us else None

    def _read(self) -> None:
        """Take in what is new; the descriptor remembers where we were."""
        try:
            if self._fd < 0:
                self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        for _ in range(self.AT_ONCE):
            try:
                record = os.read(self._fd, 8192)
            except BrokenPipeError:  # what was next has been overwritten
                continue
            except OSError:  # the end of it, for now
                return
            if told := self.TOLD.match(record):
                self._kills[int(told[3])] = int(told[1]), told[2].decode("utf-8", "replace").strip()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def memory_kills(pid: int, folder: Path | None = None) -> tuple[Path, int] | None:
    """The cgroup (v2) of the process, or the one given, and how often it was short of memory so that something in it
    was killed."""
    try:
        if folder is None:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            name = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
            folder = Path("/sys/fs/cgroup") / name.lstrip("/")
        events = dict(line.split() for line in (folder / "memory.events").read_text().splitlines())
        return folder, int(events["oom_kill"])
    except (OSError, ValueError, KeyError, StopIteration):
        return None


# -- elsewhere --------------------------------------------------------------------------------------------------


class PsutilHandle:
    def __init__(self, kernel: PsutilKernel, process: ProcessId) -> None:
        self._kernel, self._process = kernel, process

    def signal(self, number: int) -> bool:
        if self.over():
            return False
        try:
            os.kill(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def over(self) -> bool:
        found = self._kernel.facts(self._process.pid)
        return found is None or found.zombie or found.started != self._process.started

    def close(self) -> None:
        pass


class PsutilKernel:
    """macOS and others, through psutil: identity is checked right before each signal, a descriptor is not to be had."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil

    def boot(self) -> str:
        return f"{os.uname().nodename}/-/0"  # start times are absolute here: they tell one boot from another

    def facts(self, pid: int) -> Facts | None:
        if not 0 < pid <= MAX_PID:
            return None
        try:
            process = self._psutil.Process(pid)
            with process.oneshot():
                zombie = process.status() == self._psutil.STATUS_ZOMBIE
                used = process.cpu_times()
                cpu = round((used.user + used.system) * 100)
                return Facts(pid, process.ppid(), round(process.create_time() * 100), zombie, process.name(), cpu)
        except self._psutil.NoSuchProcess:
            return None
        except self._psutil.Error as error:
            raise OSError(errno.EACCES, str(error)) from error

    def pids(self) -> list[int]:
        return list(self._psutil.pids())

    def started_at(self, started: int) -> float:
        return started / 100

    def same_start(self, started: int, text: str) -> bool:
        try:
            told = time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y"))
        except (ValueError, OverflowError):
            return text == str(started)
        return abs(told - started / 100) <= 1.0

    def owner(self, pid: int) -> int:
        return int(self._ask(pid, lambda process: process.uids().effective))

    def argv(self, pid: int) -> list[str]:
        return list(self._ask(pid, lambda process: process.cmdline()))

    def environment(self, pid: int) -> dict[str, str]:
        return dict(self._ask(pid, lambda process: process.environ()))

    def folder(self, pid: int) -> str:
        return str(self._ask(pid, lambda process: process.cwd()))

    def executable(self, pid: int) -> str:
        return str(self._ask(pid, lambda process: process.exe()))

    def has_open(self, pid: int, path: Path) -> bool:
        return bool(self._ask(pid, lambda process: any(file.path == str(path) for file in process.open_files())))

    def _ask(self, pid: int, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self._psutil.Process(pid))
        except self._psutil.Error as error:
            raise OSError(errno.ESRCH, str(error)) from error

    def hold(self, process: ProcessId) -> Handle | None:
        handle = PsutilHandle(self, process)
        return None if handle.over() else handle

    def newest(self) -> int | None:
        return None


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def adopt_orphans() -> None:
    """From now on whatever descends from this process, and loses its parent, becomes its child: so nothing that is
    started here is ever lost sight of. Only Linux can.

    Not where there are children already, of a shell that became this process: their orphans are not ours to end.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)


def bury_orphans(child: int) -> None:
    """Take the exit of the adopted that have ended, as init would: they may be waited for to be gone. ``child`` itself,
    which is not reaped yet, is left to who has started it."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(ChildProcessError):  # there is none at all
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != child:
            os.waitpid(ended.si_pid, 0)


def end_with_parent() -> None:
    """Have this process asked to leave when its parent ends, however that comes. Only Linux can."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def kernel() -> Kernel:
    """The kernel of this machine."""
    return LinuxKernel() if sys.platform == "linux" else PsutilKernel()
