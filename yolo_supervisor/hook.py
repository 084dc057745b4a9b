"""``hook EVENT``: write a note about a hook event for the daemon, quickly and silently.

The client waits for its hooks, so this module imports almost nothing, prints nothing and always succeeds: a hook that
exits 2 would block its event. The payload contains no pid. The daemon identifies the agent by the ancestry of this
command, which the note contains.
"""

import os
import select
import sys
import time

from yolo_supervisor.user_dirs import project_state_dir

PAYLOAD_LIMIT = 4_194_304
"""The part of a payload that a note keeps, in bytes. The rest is read and dropped: a client that can write no more
takes its hook for a failed one."""

PAUSE_MS = 50
"""The pause after which a payload that ends with ``}`` counts as whole."""

SILENCE_MS = 1_000
"""The pause after which the rest of a payload is not waited for: the agent waits for its hook."""

DISCARD_LIMIT = 2**27
"""The rest that is read and dropped at most, in bytes: such an input has no end."""

INPUT_LIMIT_S = 5.0
"""The time after which nothing more is read, however little comes at a time."""

NOTES_LIMIT = 1_000
"""The largest number of notes. New ones are dropped above it, since no daemon may be running that reads them."""

LASTING = ("SessionStart", "SessionEnd", "SubagentStart", "SubagentStop")
"""Events that are all kept, because each is about another session or subagent; of the others only the newest is."""


def main() -> None:
    """Write the note and end the process; return only if the command is not ``hook``."""
    try:
        command, event, project = _parse(sys.argv[1:])
        if command != "hook" and not sys.argv[0].endswith("-hook"):
            return
        leave_note(event, project)
    except BaseException:  # noqa: BLE001, S110 - no error may reach the agent
        pass
    os._exit(0)


def _parse(arguments: list[str]) -> tuple[str, str, str | None]:
    """The command, its event, and the value of ``--project``, which may stand anywhere."""
    project, plain, option = None, [], ""
    for argument in arguments:
        if option:
            project, option = (argument if option == "--project" else project), ""
        elif argument in ("--project", "--config"):
            option = argument
        elif argument.startswith("--project="):
            project = argument.partition("=")[2]
        elif not argument.startswith("-"):
            plain.append(argument)
    if sys.argv[0].endswith("-hook"):
        plain.insert(0, "hook")
    command, event = [*plain, "", ""][:2]
    return command, event, project


def leave_note(event: str, project: str | None = None) -> None:
    """Write the note of this event, if the folder or a parent of it is a supervised project."""
    until_s = time.monotonic() + INPUT_LIMIT_S
    payload, more = (b"", False) if os.isatty(0) else _payload(0, until_s)
    try:
        _write_note(event, project, payload)
    finally:
        if more:
            _discard(0, until_s)


def _write_note(event: str, project: str | None, payload: bytes) -> None:
    folder = _notes_folder(os.path.abspath(project or os.environ.get("CLAUDE_PROJECT_DIR") or os.getcwd()))
    if folder is None or not event.isalnum() or len(os.listdir(folder)) > NOTES_LIMIT:
        return
    chain = _ancestry()
    # hooks run in a separate session, so the first ancestor in another one is the agent
    agent = next((pid for pid, _, _, sid in chain if sid != chain[0][3]), os.getppid())
    name = f"{event}.{agent}"
    if event in LASTING:
        name += f".{os.getpid()}-{chain[0][1]}"
    temporary = f"{folder}/.{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    line = " ".join(f"{pid}:{started}:{comm}:{sid}" for pid, started, comm, sid in chain)
    os.write(fd, line.encode() + b"\n" + payload)
    os.close(fd)
    os.rename(temporary, f"{folder}/{name}")


def _payload(fd: int, until_s: float) -> tuple[bytes, bool]:
    """The payload, and whether more follows that is to be discarded.

    It is read to its end, its limit, or a pause after a whole object, since a client may leave the pipe open.
    """
    payload = bytearray()
    while len(payload) < PAYLOAD_LIMIT:
        whole = payload[-64:].rstrip().endswith(b"}")
        part = _part(fd, PAUSE_MS if whole else SILENCE_MS, until_s)
        if not part:
            return bytes(payload), False
        payload += part
    return bytes(payload[:PAYLOAD_LIMIT]), True


def _discard(fd: int, until_s: float) -> None:
    left = DISCARD_LIMIT
    while left > 0 and (part := _part(fd, SILENCE_MS, until_s)):
        left -= len(part)


def _part(fd: int, pause_ms: float, until_s: float) -> bytes:
    """The next bytes; none at the end of the input, after the pause, and when the time is over."""
    pause_ms = min(pause_ms, (until_s - time.monotonic()) * 1000)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        return os.read(fd, 65536) if pause_ms > 0 and poll.poll(pause_ms) else b""
    except OSError:  # it was closed, or is a folder
        return b""


def _notes_folder(here: str) -> str | None:
    """The folder for notes of the project around ``here``, or around its linked work tree's main one.

    It is in the user's own state directory: a note never follows what lies in a project.
    """
    main = _main_work_tree(here)
    for folder in (here, *((main,) if main else ())):
        at = os.path.realpath(folder)
        while not os.path.isdir(notes := project_state_dir(at) + "/hooks"):
            above = os.path.dirname(at)
            if above == at:
                break
            at = above
        else:
            return notes
    return None


def _above(here: str, name: str) -> str | None:
    """The path of ``name`` in the nearest folder that has it, ``here`` or above."""
    while not os.path.exists(path := f"{here}/{name}"):
        above = os.path.dirname(here)
        if above == here:
            return None
        here = above
    return path


def _main_work_tree(here: str) -> str | None:
    """The main work tree of the linked one that ``here`` is in, if each names the other."""
    link = _above(here, ".git")
    if link is None or not os.path.isfile(link):
        return None
    git_dir = _line(link).removeprefix("gitdir: ")
    root, found, name = git_dir.rpartition("/.git/worktrees/")
    return root if found and name and _line(f"{git_dir}/gitdir") == link else None


def _line(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would never answer
    try:
        return os.read(fd, 4096).partition(b"\n")[0].decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)


def _ancestry() -> list[tuple[int, int, str, int]]:
    """This process and its ancestors: pid, start ticks, short name, session id."""
    chain: list[tuple[int, int, str, int]] = []
    pid = os.getpid()
    while pid > 1 and len(chain) < 10:
        try:
            fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        except OSError:
            break
        data = os.read(fd, 4096)
        os.close(fd)
        head, _, tail = data.rpartition(b")")
        fields = tail.split()
        comm = head.partition(b"(")[2].decode("ascii", "replace").replace(":", "_").replace(" ", "_")
        session = (
            0 if fields[4] != b"0" else int(fields[3])
        )  # a process with a terminal was started by a person, not by a client
        chain.append((pid, int(fields[19]), comm, session))
        pid = int(fields[1])
    return chain or [(os.getpid(), 0, "", 0), (os.getppid(), 0, "", 0)]
