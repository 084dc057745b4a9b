"""What we ask of the operating system about processes: facts, and a hold on one that no other can slip into."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import MAX_PID, ProcessFacts, ProcessHandle

# -- Linux ------------------------------------------------------------------------------------------------------


class PidfdHandle:
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


class ProcfsBackend:
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
        return ProcessFacts(pid, int(fields[1]), int(fields[19]), zombie, comm, used, int(fields[3]))

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

    def hold(self, process: ProcessId) -> ProcessHandle | None:
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
        return PidfdHandle(fd)

    def newest(self) -> int | None:
        try:
            with open("/proc/loadavg", "rb", buffering=0) as file:
                return int(file.read().rsplit(None, 1)[1])
        except (OSError, ValueError, IndexError):
            return None


INITIAL_PIDS = 0xEFFFFFFC
"""The inode of the pid namespace that the kernel's own log speaks of."""
