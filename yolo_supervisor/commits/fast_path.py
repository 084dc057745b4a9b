"""``commit [GIT-COMMIT-ARGS]``: the fast path of a commit that succeeds.

It runs git as the user has it and imports next to nothing; ``recovery`` is imported after a failure. One file, although
it is long: every further module costs start-up time, also ``__future__``.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from yolo_supervisor.fs.bounded import read_regular
from yolo_supervisor.system.git_files import LOCKS_DOCUMENT, OWN_FOLDER, git_dirs, head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from yolo_supervisor.commits.work_copy import WorkCopy

LIMIT_S = 600.0
"""The default time limit of git, its hooks and the push together."""

LOCK_LIMIT_S = 300.0
"""The time limit of waiting for other commits in the same repository, in seconds."""

NESTING_VARIABLE = "YOLO_SUPERVISOR_COMMITS_IN"
"""Environment variable for hooks that commit: a line ``PID COMMON-DIR`` for each commit whose hook they are.

Background processes of a hook inherit it too; the lines count only while that process is an ancestor.
"""

NEVER_ASK = {"GIT_TERMINAL_PROMPT": "0", "GIT_EDITOR": "true", "GIT_SEQUENCE_EDITOR": "true"}
"""Makes git fail where it would ask a person."""

CHUNK = 64 * 1024
"""Bytes of one read, and of git's output that are kept."""

HOOK_KEYS = r"^(core\.hookspath|hook\..*)$"
"""Keys of git's configuration that name hooks."""

QUERY_OPTIONS = ("--dry-run", "--short", "--porcelain", "--long")
"""Options with which ``git commit`` commits nothing."""

ASKING_OPTIONS = ("--patch", "--interactive")
"""Options with which ``git commit`` asks questions on its standard input; also ``-p``."""

VALUE_OPTIONS = "mFCctSu"
"""Short options of ``git commit`` whose value may follow in the same argument."""

STDIN_NAMES = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "-")
"""Names of the standard input on a command line."""

EXIT_CHECK_S = 0.05
"""The interval of checks whether git has exited while another process keeps its outputs open."""

CLOSED_CHECK_S = 0.0002
"""The interval of checks whether git has exited once all its outputs are closed."""

UPDATE_DOCUMENT, CHECKOUT, INDEX_COPY, HOOKS_RECORD = "move-", "tree-", "index-", "hooks-"
TEMPORARY = (UPDATE_DOCUMENT, CHECKOUT, INDEX_COPY, LOCKS_DOCUMENT, HOOKS_RECORD)
"""Prefixes of the temporary files in ``OWN_FOLDER``."""

EX_UNAVAILABLE, EX_TEMPFAIL = 69, 75


class CommandLine:
    """The arguments of ``commit``, ours before git's; ``error`` says what is wrong with them."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.json = self.push = self.help = False
        self.limit_s = LIMIT_S
        self.stdin = subprocess.DEVNULL
        try:
            self.folder = os.getcwd()
        except FileNotFoundError:
            self.folder = ""
        self.arguments: list[str] = []
        """Git's arguments."""
        self.error: str | None = None
        self._parse(list(argv))
        self.folder = os.path.realpath(self.folder) if self.folder else ""

    def _parse(self, rest: list[str]) -> None:
        is_named = False
        while rest and self.error is None:
            argument = rest.pop(0)
            option, _, value = argument.partition("=")
            if argument == "--json":
                self.json = True
            elif argument == "commit" and not is_named:
                is_named = True
            elif is_named and argument == "--push":
                self.push = True
            elif is_named and argument in ("-h", "--help"):
                self.help = True
            elif option in ("--project", "--config", "--timeout"):
                value = value or (rest.pop(0) if rest else "")
                if not value:
                    self.error = f"{option} needs a value"
                elif option == "--project":
                    self.folder = os.path.join(self.folder, value)
                elif option == "--timeout":
                    self._set_limit(value)
            elif is_named:
                self.arguments = [argument, *rest]
                return
            else:
                self.error = f"{argument} is not an option of commit"

    @property
    def is_query(self) -> bool:
        """Whether git is only asked what it would commit. Options may be abbreviated."""
        return any(
            argument == option or (len(argument) > 4 and option.startswith(argument))
            for argument in _before_paths(self.arguments)
            for option in QUERY_OPTIONS
        )

    @property
    def is_amend(self) -> bool:
        """Whether git replaces the last commit."""
        return any(len(argument) > 3 and "--amend".startswith(argument) for argument in _before_paths(self.arguments))

    @property
    def asks(self) -> bool:
        """Whether git asks what to commit. Also true for some arguments that only look so, which does no harm."""
        for argument in _before_paths(self.arguments):
            if argument.startswith("--"):
                if any(len(argument) > 4 and option.startswith(argument) for option in ASKING_OPTIONS):
                    return True
            elif argument.startswith("-"):
                letters = argument[1:]
                end = min(
                    (letters.index(letter) for letter in VALUE_OPTIONS if letter in letters), default=len(letters)
                )
                if "p" in letters[:end]:
                    return True
        return False

    @property
    def reads_stdin(self) -> bool:
        """Whether git reads the message, or paths, from the standard input."""
        arguments = _before_paths(self.arguments)
        for previous, argument in zip(["", *arguments], arguments, strict=False):
            name = next((name for name in STDIN_NAMES if argument.endswith(name)), "")
            option = previous if argument == name else argument.removesuffix(name).removesuffix("=")
            is_file_option = option.startswith(("--fi", "--pathspec-fr")) or (
                option.startswith("-") and not option.startswith("--") and option.endswith("F")
            )
            if name and is_file_option:
                return True
        return False

    def rewind_stdin(self) -> None:
        """Let git read the message, or paths, from their beginning."""
        if self.stdin > 0:
            os.lseek(self.stdin, 0, os.SEEK_SET)

    def _set_limit(self, value: str) -> None:
        try:
            self.limit_s = float(value)
        except ValueError:
            self.limit_s = 0.0
        if not 0 < self.limit_s <= 86400:
            self.error = f"--timeout {value} is not a number of seconds up to 86400"


class Ending:
    """The end of the program: its exit code, the document of ``--json``, and the lines for people."""

    def __init__(self, code: int, document: Mapping[str, object], lines: Sequence[str] = ()) -> None:
        self.code = code
        self.document = document
        self.lines = lines


class Stopped(Exception):
    """The commit cannot go on: a signal arrived, or there is no git."""

    def __init__(self, code: int, cause: str, message: str) -> None:
        super().__init__(message)
        self.ending = Ending(code, {"result": "failed", "cause": cause, "message": message}, [message])


class CommitLock:
    """A file lock in the repository: commits in all its work trees run one at a time."""

    def __init__(self, common_dir: str | None) -> None:
        self._common_dir = common_dir
        self._fd = -1
        self.timed_out = False
        self.environment = {**os.environ, **NEVER_ASK, "LC_MESSAGES": "C"}  # English messages, the user's encoding
        self.environment.pop("LANGUAGE", None)
        if locale := self.environment.pop("LC_ALL", None):
            self.environment["LC_CTYPE"] = locale
        outer = [line.partition(" ") for line in os.environ.get(NESTING_VARIABLE, "").split("\n")]
        holders = {pid for pid, _, folder in outer if folder == common_dir and common_dir is not None}
        self.is_nested = bool(holders) and not holders.isdisjoint(_ancestors())
        """Whether an ancestor holds the lock for us."""
        self._may_be_nested = any(not _exists(pid) for pid in holders)
        """Whether an ancestor in another pid namespace may hold it, which cannot be seen from here."""
        if common_dir is not None:
            lines = [f"{pid} {folder}" for pid, _, folder in outer if folder]
            self.environment[NESTING_VARIABLE] = "\n".join([*lines, f"{os.getpid()} {common_dir}"])

    def __enter__(self) -> "CommitLock":
        if self._common_dir is None or self.is_nested:
            return self
        try:
            self._fd = _open_lock(self._common_dir)
        except OSError:
            return self  # git reports a repository that we may not write to
        if not self._try_lock():
            self._wait()
        return self

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait(self) -> None:
        if self._may_be_nested:  # then the holder waits for us
            self.is_nested = True
            return
        from yolo_supervisor.clock import Backoff  # slow to import, but this commit has to wait anyway

        deadline, backoff = time.monotonic() + LOCK_LIMIT_S, Backoff(0.001, 0.05)
        while not self._try_lock():
            if time.monotonic() > deadline:
                self.timed_out = True
                return
            time.sleep(backoff.next_s())

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _open_lock(common_dir: str) -> int:
    """Open the lock file of a repository; the first commit makes it."""
    path = os.path.join(common_dir, "yolo-supervisor.lock")
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            from yolo_supervisor.fs.owner import open_for_owner

            return open_for_owner(path, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:  # another user of the repository has made it
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class _GitProcess:
    """One process of ``git commit``, and the signals that end it and its hooks."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.signals: list[int] = []
        """The signals that have arrived."""
        self.is_held = False
        """Whether signals are only noted, since what git has made is not reported yet."""
        self._is_starting = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
            elif number == signal.SIGINT:  # git runs in a separate session, where only we send this signal
                signal.signal(number, _ignore)

    def _note(self, number: int, _: object) -> None:
        if self.pid is None and not self._is_starting and not self.is_held:
            raise SystemExit(128 + number)
        self.signals.append(number)

    def start(self, line: CommandLine, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        line.rewind_stdin()
        self._is_starting = True
        child = subprocess.Popen(
            ["git", "commit", *line.arguments], cwd=line.folder, env=environment, stdin=line.stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            close_fds=False,  # descriptors that were opened for git, by <(...) for instance; ours have CLOEXEC set
        )  # fmt: skip
        self.pid, self._is_starting = child.pid, False
        return child

    def has_exited(self) -> bool:
        """Whether git has exited. It is not reaped, so that its pid is not used again."""
        assert self.pid is not None
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return False
        self.pid, self.is_held = None, True
        return True


def _was_killed(pid: int) -> bool:
    """Whether our child, which is not reaped yet, has ended by a signal: then its hooks may go on."""
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    return status is not None and status.si_code != os.CLD_EXITED


def _ignore(*_: object) -> None:
    """Ignore a signal, which the programs that we start do not inherit."""


def _end_tree(pid: int) -> None:
    """End git, which is not reaped yet, and all that it has started."""
    import anyio

    from yolo_supervisor.system.subprocesses import GRACE_S, end

    anyio.run(end, pid, GRACE_S)


def _write(fd: int, data: bytes) -> None:
    """Write to a standard output. Git goes on if it is closed."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass


class CommitAttempt:
    """``git commit`` with the user's arguments in one work tree: run, run again, or dry."""

    def __init__(self, command_line: CommandLine, lock: CommitLock, dirs: tuple[str, str] | None) -> None:
        self.folder = command_line.folder
        self.as_json = command_line.json
        self.environment = lock.environment
        self.is_nested = lock.is_nested
        """Whether a hook of a commit in the same repository runs us: that commit waits for our end."""
        self.push = False
        """Whether the commit is to be pushed; known after the first run."""
        self.exit_code: int | None = None
        """The exit code of the last run; None if the time limit ended it."""
        self._output = b""
        self.signal: int | None = None
        """The signal that ended the last run."""
        self.has_hooks = False
        """Whether git may run hooks."""
        self.copy: WorkCopy | None = None
        """The copy of the work tree that was made before hooks ran."""
        self._git = _GitProcess()  # from here on a signal ends the program in order
        self._command_line = command_line
        self.deadline = time.monotonic() + command_line.limit_s
        """The end of the time limit, on the monotonic clock."""
        self._dirs = dirs
        self._tip = self._read_tip()

    @property
    def output(self) -> str:
        """The end of what the last run wrote."""
        return self._output.decode(errors="replace")

    @property
    def tip_moved(self) -> bool | None:
        """Whether HEAD has moved since the attempt began; None if it cannot be read."""
        tip = self._read_tip()
        return None if tip is None or self._tip is None else tip != self._tip

    @property
    def committed_despite_failure(self) -> bool:
        """Whether a failed run has made its commit: git says so, or was ended after HEAD had moved.

        A moved HEAD alone proves nothing: another commit may have been made while a hook of ours failed. Then git still
        finds what it was to commit.
        """
        code = self.exit_code
        half_done = code == 128 and "repository has been updated, but unable to write" in self.output
        if not (code is None or code < 0 or half_done) or not self.tip_moved:
            return False
        if self._command_line.is_amend:
            return half_done or self._parent("HEAD") == self._parent((self._tip or "").rpartition(" ")[2].strip())
        return half_done or self.nothing_to_commit() is not False

    @property
    def was_ended(self) -> bool:
        """Whether the last run was ended by its time limit or a signal."""
        return self.exit_code is None or self.exit_code < 0 or self.signal is not None

    def run(self) -> None:
        """Run git, pass its output on, and set ``exit_code``, ``signal`` and ``output``.

        ``Stopped`` if there is no git.
        """
        git = self._git = _GitProcess()
        try:
            child = git.start(self._command_line, self.environment)
        except FileNotFoundError:
            raise Stopped(EX_UNAVAILABLE, "no git", "git is not installed") from None
        if self.copy is not None:
            self.copy.git_started(child.pid)
        self._pump(git, child)
        if self.exit_code not in (0, None) and git.signals:
            self.signal = git.signals[0]

    def heed_signals(self) -> None:
        """End the program at a signal again; ``SystemExit`` if one has arrived since git exited."""
        self._git.is_held = False
        if self._git.signals and self.signal is None:
            raise SystemExit(128 + self._git.signals[0])

    def _read_tip(self) -> str | None:
        """HEAD's commit, with the refs that lead to it where they are files; None if it cannot be read."""
        if self._dirs is None:
            return None
        try:
            return head(*self._dirs)
        except (OSError, ValueError):
            pass
        return self._rev_parse("--verify", "--quiet", "HEAD")

    def _parent(self, commit: str) -> str | None:
        """The first parent of the commit, nothing if there is none; None if that is unknown."""
        return self._rev_parse("--verify", "--quiet", f"{commit}^1") if commit else None

    def _rev_parse(self, *arguments: str) -> str | None:
        """The answer of ``git rev-parse``: empty if there is no such commit, None if it cannot say."""
        try:
            answer = subprocess.run(
                ["git", "rev-parse", *arguments], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
            )  # fmt: skip
        except OSError:
            return None
        return answer.stdout if answer.returncode in (0, 1) else None

    def _pump(self, git: _GitProcess, child: subprocess.Popen[bytes]) -> None:
        """Pass the outputs of git on until it has exited, or has to be ended."""
        outputs = {pipe.fileno(): fd for pipe, fd in ((child.stdout, 1), (child.stderr, 2)) if pipe is not None}
        self._output = b""
        exited = timed_out = False
        while (outputs or not exited) and not git.signals:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0 and not exited:
                timed_out = True
                break
            ready = self._pass_on(outputs, 0 if exited else min(left_s, EXIT_CHECK_S if outputs else CLOSED_CHECK_S))
            if exited and (not ready or left_s <= 0):
                break  # a background process of a hook, a server for instance, keeps the pipes open
            exited = exited or (not ready and git.has_exited())
        if timed_out or git.signals or _was_killed(child.pid):
            git.pid = child.pid  # further signals are only noted
            self._end(child.pid, outputs)
        code = child.wait()
        git.pid, git.is_held = None, True
        self.exit_code = None if timed_out else code

    def _pass_on(self, outputs: dict[int, int], limit_s: float) -> bool:
        """Pass on what git writes within the time; whether it wrote something."""
        ready, _, _ = select.select(list(outputs), [], [], limit_s)
        for fd in ready:
            part = os.read(fd, CHUNK)
            if not self.as_json:
                _write(outputs[fd], part)
            if not part:
                del outputs[fd]
            self._output = (self._output + part)[-CHUNK:]
        return bool(ready)

    def _end(self, pid: int, outputs: dict[int, int]) -> None:
        """End git and its hooks as Ctrl-C does; after a grace period, harder.

        The group is git's: it leads a separate session, and is not reaped yet.
        """
        os.killpg(pid, signal.SIGINT)
        from yolo_supervisor.system.subprocesses import INTERRUPT_GRACE_S, has_session

        deadline = time.monotonic() + INTERRUPT_GRACE_S
        while time.monotonic() < deadline and has_session(pid):
            self._pass_on(outputs, EXIT_CHECK_S)  # hooks that cannot write do not end
            if not outputs:
                time.sleep(EXIT_CHECK_S)
        _end_tree(pid)

    def nothing_to_commit(self) -> bool | None:
        """Whether a dry run, without hooks, finds nothing to commit; None if git cannot say."""
        line = self._command_line
        if line.stdin == 0:
            return None  # a dry run would ask again, and the answers are used up
        line.rewind_stdin()
        dry_run = subprocess.run(
            ["git", "commit", "--dry-run", "--no-verify", *line.arguments], cwd=line.folder, env=self.environment,
            stdin=line.stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        return {0: False, 1: True}.get(dry_run.returncode)


def main() -> None:
    """Commit and end the process; return only if the command line is not a commit's.

    It may be another command's, ask for help, or be wrong: then the command line interface answers.
    """
    command_line = CommandLine(sys.argv[1:])
    if command_line.error is not None or command_line.help or not os.path.isdir(command_line.folder):
        return
    try:
        ending = _commit(command_line)
    except Stopped as stopped:
        ending = stopped.ending
    except KeyboardInterrupt:  # before git has started
        os._exit(128 + signal.SIGINT)
    if command_line.json:
        import json

        _write(1, f"{json.dumps(ending.document)}\n".encode())
    else:
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        text = "".join(f"yolo-supervisor: {line}\n" for line in ending.lines)
        _write(2, text.encode(encoding, "backslashreplace"))
    os._exit(ending.code)


def _commit(command_line: CommandLine) -> Ending:
    dirs = git_dirs(command_line.folder)
    if command_line.reads_stdin:
        command_line.stdin = _buffered_stdin()
    elif command_line.asks and _is_open(0):
        command_line.stdin = 0
    common_dir = dirs[1] if dirs is not None else None
    with CommitLock(common_dir) as lock:
        if lock.timed_out:
            message = f"other commits in {common_dir} have held the lock for {LOCK_LIMIT_S:g} s: try again"
            return Ending(EX_TEMPFAIL, {"result": "busy", "message": message}, [message])
        earlier: list[str] = []
        if common_dir is not None and not lock.is_nested and _has_temporary_files(common_dir):
            from yolo_supervisor.commits import recovery

            earlier = recovery.finish_interrupted(command_line.folder, lock.environment)
        ending = _attempt(CommitAttempt(command_line, lock, dirs), command_line, common_dir)
        if earlier:
            notes = ending.document.get("notes")
            ending.document = {**ending.document, "notes": [*earlier, *(notes if isinstance(notes, list) else [])]}
        return ending


def _attempt(attempt: CommitAttempt, command_line: CommandLine, common_dir: str | None) -> Ending:
    """Commit once; recover if that fails, if it is to be pushed, or if a hook has changed the user's work."""
    attempt.has_hooks = common_dir is not None and not command_line.is_query and _has_hooks(attempt, common_dir)
    if attempt.has_hooks:
        from yolo_supervisor.commits.work_copy import WorkCopy

        attempt.copy = WorkCopy.make(attempt.folder, attempt.environment, attempt.deadline)
    attempt.run()
    attempt.push = not command_line.is_query and (command_line.push or _auto_push(command_line.folder))
    committed = attempt.exit_code == 0 and attempt.tip_moved is not False and not command_line.is_query
    intact = attempt.copy is None or (not attempt.was_ended and attempt.copy.is_intact)
    if intact and attempt.copy is not None:
        attempt.copy.forget()
        attempt.copy = None
    if attempt.exit_code == 0 and intact and not (attempt.push and committed):
        return Ending(0, {"result": "committed" if committed else "unchanged"})
    from yolo_supervisor.commits import recovery

    return recovery.recover(attempt)


def _ancestors() -> set[str]:
    """The pids of our ancestors."""
    ancestors, pid = set[str](), str(os.getppid())
    while pid not in ("0", "1") and pid not in ancestors:
        ancestors.add(pid)
        pid = _parent(pid)
    return ancestors


def _parent(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[1].decode()
    except OSError:
        pass  # no /proc, as on macOS
    try:
        ps = subprocess.run(["ps", "-o", "ppid=", "-p", pid], stdout=subprocess.PIPE, text=True, check=False)
    except OSError:
        return "0"
    return ps.stdout.strip() or "0"


def _exists(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (OSError, ValueError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _before_paths(arguments: list[str]) -> list[str]:
    """The arguments before ``--``."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _buffered_stdin() -> int:
    """The standard input as an unnamed file, so that git can be run more than once."""
    import tempfile

    fd, path = tempfile.mkstemp()
    os.unlink(path)
    while part := os.read(0, CHUNK):
        os.write(fd, part)
    return fd


def _has_temporary_files(common_dir: str) -> bool:
    """Whether a killed run has left temporary files.

    The caller holds the commit lock, which proves that none of them is in use.
    """
    try:
        return any(name.startswith(TEMPORARY) for name in os.listdir(os.path.join(common_dir, OWN_FOLDER)))
    except OSError:
        return False


def _has_hooks(attempt: CommitAttempt, common_dir: str) -> bool:
    """Whether git may run hooks: there are some in their usual folder, or the configuration names others."""
    folder = os.path.join(common_dir, "hooks")
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    if any(not name.endswith(".sample") and os.access(os.path.join(folder, name), os.X_OK) for name in names):
        return True
    try:
        configured = subprocess.run(
            ["git", "config", "--get-regexp", HOOK_KEYS], cwd=attempt.folder, env=attempt.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return any(not line.endswith(os.devnull.encode()) for line in configured.stdout.splitlines())


def _auto_push(folder: str) -> bool:
    """Whether the plugin's ``auto_push`` is ``always``, in a project inside this repository."""
    while not os.path.isdir(os.path.join(folder, ".yolo-planning")):
        if os.path.lexists(os.path.join(folder, ".git")) or folder == (folder := os.path.dirname(folder)):
            return False
    try:
        data = read_regular(os.path.join(folder, ".yolo-planning", "config.json"), 1 << 20)
    except OSError:
        return False
    if b"auto_push" not in data:
        return False
    import json

    try:
        return bool(json.loads(data).get("auto_push") == "always")
    except (ValueError, AttributeError):
        return False
