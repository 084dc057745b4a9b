"""``hook EVENT``: leaves a note for the supervisor, and gets out of the agent's way.

The client waits for its hooks, so this imports next to nothing, prints nothing and always succeeds: a hook that exits 2
would block its event. The payload names no pid; who the agent is follows from this command's own ancestry, which is
written down as it is, for the daemon to judge.
"""

import os
import sys

PAYLOAD_LIMIT = 4_194_304
NOTES_LIMIT = 1_000
"""Nobody reads the notes while no daemon runs: beyond this many, new ones are not kept."""

LASTING = ("SessionStart", "SessionEnd", "SubagentStart", "SubagentStop")
"""Each of these tells of another life; of all other events only the newest of an agent is kept."""


def main() -> None:
    """Leave the note and end the process; return only if the command line is not ``hook``'s."""
    try:
        command, event, project = _words(sys.argv[1:])
        if command != "hook" and not sys.argv[0].endswith("-hook"):
            return
        leave_note(event, project)
    except BaseException:  # noqa: BLE001, S110 - whatever happens here must never reach the agent
        pass
    os._exit(0)


def _words(words: list[str]) -> tuple[str, str, str | None]:
    """The command, its event, and the project that was named, wherever among them its option stands."""
    named, plain, option = None, [], ""
    for word in words:
        if option:
            named, option = (word if option == "--project" else named), ""
        elif word in ("--project", "--config"):
            option = word
        elif word.startswith("--project="):
            named = word.partition("=")[2]
        elif not word.startswith("-"):
            plain.append(word)
    if sys.argv[0].endswith("-hook"):
        plain.insert(0, "hook")
    command, event = [*plain, "", ""][:2]
    return command, event, named


def leave_note(event: str, project: str | None = None) -> None:
    """Write the note of this event, if the folder or a parent of it is a supervised project."""
    folder = _notes_folder(os.path.abspath(project or os.environ.get("CLAUDE_PROJECT_DIR") or os.getcwd()))
    payload = b""
    while not os.isatty(0) and len(payload) < PAYLOAD_LIMIT and (part := os.read(0, 65536)):
        payload += part
    if folder is None or not event.isalnum() or len(os.listdir(folder)) > NOTES_LIMIT:
        return
    chain = _ancestry()
    agent = next(
        (pid for pid, _, _, sid in chain if sid != chain[0][3]), os.getppid()
    )  # hooks run in their own session
    name = f"{event}.{agent}"
    if event in LASTING:
        name += f".{os.getpid()}-{chain[0][1]}"
    temporary = f"{folder}/.{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    line = " ".join(f"{pid}:{started}:{comm}:{sid}" for pid, started, comm, sid in chain)
    os.write(fd, line.encode() + b"\n" + payload)
    os.close(fd)
    os.rename(temporary, f"{folder}/{name}")


def _notes_folder(here: str) -> str | None:
    while True:
        folder = f"{here}/.yolo-planning/.supervisor/hooks"
        if os.path.isdir(folder):
            return folder
        above = os.path.dirname(here)
        if above == here:
            return None
        here = above


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
        session = 0 if fields[4] != b"0" else int(fields[3])  # with a terminal: typed by a person, not run by a client
        chain.append((pid, int(fields[19]), comm, session))
        pid = int(fields[1])
    return chain or [(os.getpid(), 0, "", 0), (os.getppid(), 0, "", 0)]
