"""``python -I -m yolo_supervisor.launch FILE``: start an agent again, in place of this process.

The agent's terminal runs this program, which becomes the client, so the pid does not change. It is the only part of the
supervisor that starts agents, and it lets no two processes run one session: it holds the session's lock, looks for
other processes of the session, and then calls ``exec``. It imports almost nothing, so that a start is quick.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
import sys
import time

from yolo_supervisor.formats.launch_fields import SIZE_LIMIT
from yolo_supervisor.formats.start import Start, load_start
from yolo_supervisor.fs.bounded import open_regular
from yolo_supervisor.system import session_scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

NO_FILE, NO_FOLDER, LIVE, WRONG_PLACE, UNUSABLE, NO_PROGRAM = 66, 72, 75, 69, 126, 127
"""The exit statuses: no document, no folder, the session is live or that is unknown, another pane than expected, a
program that cannot be started, no program."""

LOOK_S = 0.5
"""How long a held lock is tried again."""

PF_EXITING = 0x4
"""The flag of a task that has begun to end."""

IGNORED_BY_PYTHON = ("SIGPIPE", "SIGXFZ", "SIGXFSZ")
"""Signals that Python ignores. A program that is started while one is ignored goes on ignoring it."""


class Refused(Exception):
    """The agent is not started; ``status`` is the exit status, and the text says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def main() -> None:
    """Start the agent of the document, or say in one sentence why not."""
    try:
        path = sys.argv[1] if len(sys.argv) == 2 else ""
        start = take_document(path)
        held = lock(start.lock)  # noqa: F841  # the descriptor closes when the client begins
        refuse_second(start)
        become(start)
    except Refused as refused:
        text = "".join(c if c.isprintable() else "?" for c in str(refused))
        sys.stderr.write(f"yolo-supervisor: {text}\n")
        sys.exit(refused.status)


def take_document(path: str) -> Start:
    """Read the document and remove it, so that no start happens twice."""
    try:
        fd = open_regular(path)
    except OSError as error:
        raise Refused(NO_FILE, f"the start document cannot be read ({error.strerror}); nothing was started") from None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077 or found.st_nlink != 1:
            raise Refused(NO_FILE, f"{path} is not a private file of this user; nothing was started")
        data = b""
        while len(data) <= SIZE_LIMIT and (part := os.read(fd, SIZE_LIMIT + 1 - len(data))):
            data += part
        os.unlink(path)
    except OSError as error:
        raise Refused(NO_FILE, f"the start document cannot be taken ({error.strerror}); nothing was started") from None
    finally:
        os.close(fd)
    start = load_start(data)
    if start is None:
        raise Refused(NO_FILE, "the start document is damaged; nothing was started")
    if start.pane is not None and os.environ.get("TMUX_PANE") != start.pane:
        raise Refused(WRONG_PLACE, f"this is not the pane {start.pane} of the agent; nothing was started")
    return start


def lock(path: str) -> int:
    """Take the session's lock; its descriptor, which a new program does not inherit."""
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise Refused(LIVE, f"{path} is not a lock of this user; nothing was started")
            _flock(fd)
            if _leads_to(path, found):
                return fd
            os.close(fd)  # it was removed before we had it
    except BlockingIOError:
        raise Refused(LIVE, "another start of this session is under way; nothing was started") from None
    except OSError as error:
        raise Refused(LIVE, f"the session's lock cannot be taken ({error.strerror}); nothing was started") from None


def _flock(fd: int) -> None:
    """Take the lock. BlockingIOError if another launcher has it; a look at a lock has it for a moment, too."""
    until = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _leads_to(path: str, found: os.stat_result) -> bool:
    try:
        now = os.lstat(path)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)


def refuse_second(start: Start) -> None:
    """Raise ``Refused`` unless it is certain that no process runs the session."""
    try:
        here = domain()
    except OSError:
        raise Refused(LIVE, "this system does not say which processes run; nothing was started") from None
    seen = session_scan.look(start.session, start.agent, start.team, start.homes, Proc(), here)
    seen.processes.pop(os.getpid(), None)
    if seen.processes:
        pids = ", ".join(map(str, sorted(seen.processes)))
        raise Refused(LIVE, f"session {start.session} is live already (pid {pids}); nothing was started")
    if seen.unknown:
        raise Refused(LIVE, f"another process may run session {start.session}; nothing was started")


def become(start: Start) -> NoReturn:
    """Become the client."""
    try:
        os.chdir(_bytes(start.folder))
    except OSError as error:
        raise Refused(NO_FOLDER, f"the agent's folder {start.folder} is gone ({error.strerror})") from None
    for name in IGNORED_BY_PYTHON:
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_DFL)
    environment = new_environment(start)
    script_gone = start.script is not None and not os.path.exists(_bytes(start.script))
    if not script_gone:
        _exec(start.argv, environment)
    if start.is_client:  # an upgrade has moved it
        _exec(("claude", *start.argv[start.program :]), environment)
    gone = start.script if script_gone else start.argv[0]
    raise Refused(NO_PROGRAM, f"the agent's program {gone} is gone, and claude is not on the PATH")


def new_environment(start: Start) -> dict[bytes, bytes]:
    """The environment of the client: this process's, with the agent's variables."""
    environment = dict(os.environb)
    if b"LC_CTYPE" in environment and not _was_given(b"LC_CTYPE"):
        del environment[b"LC_CTYPE"]  # Python sets it where no locale is set
    for name in start.absent:
        environment.pop(name.encode(), None)
    environment.update((name.encode(), _bytes(value)) for name, value in start.environment.items())
    environment[b"PWD"] = _bytes(start.folder)
    return environment


def _was_given(name: bytes) -> bool:
    try:
        with open("/proc/self/environ", "rb") as file:
            return any(entry.startswith(name + b"=") for entry in file.read().split(b"\0"))
    except OSError:
        return True


def _exec(argv: Sequence[str], environment: Mapping[bytes, bytes]) -> None:
    """Become this program; return if there is none. ``Refused`` if it cannot be started."""
    words = [_bytes(word) for word in argv]
    folders = environment.get(b"PATH", os.defpath.encode()).split(b":")
    paths = [words[0]] if b"/" in words[0] else [os.path.join(folder or b".", words[0]) for folder in folders]
    for path in paths:
        try:
            os.execve(path, words, environment)  # noqa: S606  # that is its purpose
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            if error.errno == errno.EACCES and len(paths) > 1:
                continue
            raise Refused(UNUSABLE, f"the agent's program {argv[0]} cannot be started ({error.strerror})") from None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# -- the processes of this machine ------------------------------------------------------------------------------------


class Facts:
    """The facts about one process."""

    def __init__(self, started: int, zombie: bool, comm: str, ending: bool = False) -> None:
        self.started, self.zombie, self.comm, self.ending = started, zombie, comm, ending


class Proc:
    """The part of the process backend that a look for a session needs. The whole one takes long to import."""

    def pids(self) -> list[int]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]

    def facts(self, pid: int) -> Facts | None:
        try:
            data = self._read(pid, "stat")
        except (FileNotFoundError, ProcessLookupError):
            if self._is_hidden(pid):
                raise
            return None
        head, _, tail = data.rpartition(b")")
        fields = tail.split()
        zombie = fields[0] in (b"Z", b"X", b"x") and self._last_thread(pid)
        ending = bool(int(fields[6]) & PF_EXITING) and self._last_thread(pid)
        return Facts(int(fields[19]), zombie, head.partition(b"(")[2].decode("utf-8", "replace"), ending)

    def _is_hidden(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except OSError as error:
            return error.errno != errno.ESRCH
        return True

    def _last_thread(self, pid: int) -> bool:
        try:
            return len(os.listdir(f"/proc/{pid}/task")) <= 1
        except OSError:
            return True

    def owner(self, pid: int) -> int:
        return os.stat(f"/proc/{pid}").st_uid

    def argv(self, pid: int) -> list[str]:
        return [word.decode("utf-8", "replace") for word in self._read(pid, "cmdline").split(b"\0")[:-1]]

    def environment(self, pid: int) -> dict[str, str]:
        pairs = (entry.decode("utf-8", "replace").partition("=") for entry in self._read(pid, "environ").split(b"\0"))
        return {name: value for name, separator, value in pairs if separator}

    def same_start(self, started: int, text: str) -> bool:
        return str(started) == text

    def _read(self, pid: int, name: str) -> bytes:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while part := os.read(fd, 65536):
                data += part
            return data
        finally:
            os.close(fd)


def domain() -> str:
    """This machine and pid namespace, as the client names them. OSError where the system does not say."""
    namespace = os.stat("/proc/self/ns/pid").st_ino
    try:
        with open("/etc/machine-id") as file:
            machine = file.read().strip()
    except OSError:
        machine = ""
    return f"linux:{machine if re.fullmatch('[0-9a-f]{32}', machine) else os.uname().nodename}:pid:[{namespace}]"


if __name__ == "__main__":
    main()
