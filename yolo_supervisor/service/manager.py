"""The service manager's side: which files of ours it gets, whether it is there, what it says of the service."""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolo_supervisor import log
from yolo_supervisor.fs.read import read, read_or_none
from yolo_supervisor.store.atomic import make_folder, remove, write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.user_dirs import config_dir, home

LIMIT_S = 90.0
"""How long a start or stop may take: more than the units themselves allow."""

LABEL = "org.yolo-supervisor"
NOTIFY_RELOAD = 253
"""The version of systemd from which on Type=notify-reload is understood; before, it would silently mean "simple"."""

GENERATED = b"# The program is not where the unit expects it."
"""How a file begins that is made anew by every installation, and so needs no copy."""

Result = Literal["written", "replaced", "unchanged"]


def shipped() -> Path:
    """The folder of the units: in the installed package, else in the working tree."""
    package = Path(__file__).parents[1]
    packaged = package / "data" / "systemd"
    return packaged if packaged.is_dir() else package.parent / "systemd"


def program(usual: Path) -> tuple[str, ...]:
    """The words that start this very program for a service; the usual place if it can also be started from there."""
    called, beside = Path(os.path.abspath(sys.argv[0])), Path(sys.executable).with_name("yolo-supervisor")
    script = next((path for path in (called, beside) if path.name == beside.name and os.access(path, os.X_OK)), None)
    if script is None:
        return (sys.executable, "-m", "yolo_supervisor")
    same = os.path.realpath(usual) == os.path.realpath(script)
    return (str(usual if same else script),)


def quoted(words: tuple[str, ...]) -> str:
    """The words as a command line in a unit file."""
    return " ".join(
        word
        if re.fullmatch(r"[\w./@:+=,-]+", word)
        else '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
        for word in words
    )


@dataclass(frozen=True, slots=True)
class State:
    """What the manager says of the service."""

    installed: bool
    enabled: bool
    active: bool
    pid: int | None
    text: str
    """The daemon's own words, or how it ended."""
    restarts: int | None = None


class ManagerError(Exception):
    """A command of the service manager failed. The message is the command and its output."""


class Systemd:
    """A user's own manager, or the system's, which runs a template for a user."""

    name = "systemd"

    def __init__(self, user: str = "", environment: Mapping[str, str] = os.environ) -> None:
        self.user = user
        """Whom the system's manager runs it for; empty for the caller's own manager."""
        self.unit = f"yolo-supervisor@{user}.service" if user else "yolo-supervisor.service"
        self._template = "yolo-supervisor@.service" if user else self.unit
        folder = Path("/etc/systemd/system") if user else config_dir(environment) / "systemd" / "user"
        self.folder = Path(os.path.realpath(folder))  # people keep their settings elsewhere, and link to them
        local = Path("/usr/local") if user else (home(environment) or Path("/")) / ".local"
        self._usual = local / "bin/yolo-supervisor"
        self._environment = dict(environment)
        bus = Path(f"/run/user/{os.getuid()}")
        if not environment.get("XDG_RUNTIME_DIR") and (bus / "bus").exists():
            self._environment["XDG_RUNTIME_DIR"] = str(bus)  # after su, say

    @property
    def command(self) -> str:
        """What a person types."""
        return "systemctl" if self.user else "systemctl --user"

    def missing(self) -> str | None:
        """Why nothing can be installed here, None if something can."""
        if shutil.which("systemctl") is None:
            return f"there is no systemd here{_surroundings()}"
        if not os.path.isdir("/run/systemd/system"):
            return f"systemd does not run here{_surroundings()}"
        if self.user:
            return None
        told = self._call("show", "--property=Version")
        if told.returncode == 0:
            return None
        return (
            f"your user manager cannot be reached ({told.stderr.strip()}): log in at the machine or by ssh, "
            "since su and sudo start none; or let root say: loginctl enable-linger USER; or install it with --system"
        )

    def version(self) -> int:
        found = re.match(r"\d+", self._call("show", "--property=Version", "--value").stdout)
        return int(found[0]) if found else 0

    def files(self) -> dict[Path, bytes]:
        """What belongs where: exactly what is shipped, and where the program lies if that is not the usual place."""
        found = {self.folder / self._template: (shipped() / self._template).read_bytes()}
        additions = self.folder / f"{self._template}.d"
        if (words := program(self._usual)) != (str(self._usual),):
            found[additions / "10-program.conf"] = _elsewhere(words).encode()
        if self.version() >= NOTIFY_RELOAD:
            found[additions / "20-notify-reload.conf"] = (shipped() / "notify-reload.conf").read_bytes()
        if not self.user:
            found[self.folder / "yolo-tmux@.service"] = (shipped() / "yolo-tmux@.service").read_bytes()
        return found

    def obsolete(self) -> list[Path]:
        """What an earlier installation has put there and this one does not need."""
        additions = self.folder / f"{self._template}.d"
        ours = [additions / name for name in ("10-program.conf", "20-notify-reload.conf")]
        return [path for path in ours if path not in self.files() and os.path.lexists(path)]

    def enable(self) -> None:
        self._do("daemon-reload")
        self._do("enable", self.unit)

    def start(self, anew: bool) -> None:
        """Have it run; ``anew`` if what it would run on has changed."""
        self._call("reset-failed", self.unit)
        self._do("restart" if anew else "start", self.unit)

    def disable(self) -> None:
        self._do("disable", "--now", self.unit)

    def gone(self) -> None:
        """The files are removed."""
        self._do("daemon-reload")
        self._call("reset-failed", self.unit)

    def others(self) -> list[str]:
        """Who else is served by the same files."""
        if not self.user:
            return []
        found = {link.name for link in self.folder.glob("*.wants/yolo-supervisor@*.service")}
        told = self._call("list-units", "yolo-supervisor@*.service", "--all", "--plain", "--no-legend").stdout
        found |= {line.split()[0] for line in told.splitlines() if line.startswith("yolo-supervisor@")}
        return sorted(found - {self.unit})

    def state(self) -> State:
        keys = "LoadState,UnitFileState,ActiveState,SubState,Result,MainPID,StatusText,NRestarts,ExecMainStatus"
        lines = self._call("show", self.unit, f"--property={keys}").stdout.splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        active = told.get("ActiveState") in ("active", "reloading")
        pid, restarts = told.get("MainPID", "0"), told.get("NRestarts", "")
        words = f"{told.get('ActiveState', 'unknown')} ({told.get('SubState', 'unknown')})"
        if told.get("Result", "success") != "success":
            words += f": {told['Result']}, exit status {told.get('ExecMainStatus')}"
        return State(
            installed=told.get("LoadState") == "loaded",
            enabled=told.get("UnitFileState") == "enabled",
            active=active,
            pid=int(pid) if active and pid.isdigit() and pid != "0" else None,
            text=told.get("StatusText") or words if active else words,
            restarts=int(restarts) if restarts.isdigit() else None,
        )

    def log(self, file: str) -> str:
        """The command or the file that tells what the daemon says; ``file`` is what its configuration names."""
        if file:
            return file
        if log.journal_is_volatile():
            environment = {"HOME": pwd.getpwnam(self.user).pw_dir} if self.user else self._environment
            return str(log.user_copy(environment))
        return f"journalctl {'-u' if self.user else '--user -u'} {self.unit.removesuffix('.service')}"

    def _do(self, *words: str) -> None:
        told = self._call(*words)
        if told.returncode != 0:
            raise ManagerError(f"{self.command} {' '.join(words)}: {told.stderr.strip() or f'exit {told.returncode}'}")

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        scope = [] if self.user else ["--user"]
        return _call(["systemctl", *scope, "--no-pager", *words], self._environment)


class Launchd:
    """A launchd agent of the user. Nobody has tried it on a Mac yet."""

    name = "launchd"
    user = ""
    command = "launchctl"

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._home = home(environment) or Path("/")
        self.unit = LABEL
        self.folder = self._home / "Library" / "LaunchAgents"
        self._environment = dict(environment)

    def missing(self) -> str | None:
        if shutil.which("launchctl") is None:
            return "there is no launchd here"
        usual = self._home / ".local/bin/yolo-supervisor"
        if not os.access(usual, os.X_OK):
            return f"the agent starts {usual}, which is not there: install by pipx or uv tool, or link it there"
        return None

    def files(self) -> dict[Path, bytes]:
        return {self.folder / f"{LABEL}.plist": (shipped() / f"{LABEL}.plist").read_bytes()}

    def obsolete(self) -> list[Path]:
        return []

    def enable(self) -> None:
        make_folder(Disk(), self._home / "Library" / "Logs")
        self._call("enable", f"{self._domain()}/{LABEL}")

    def start(self, anew: bool) -> None:
        domain = self._domain()
        if anew:
            self._call("bootout", f"{domain}/{LABEL}")
        if not self.state().installed:
            self._do("bootstrap", domain, str(self.folder / f"{LABEL}.plist"))
        self._do("kickstart", f"{domain}/{LABEL}")

    def disable(self) -> None:
        if self.state().installed:
            self._do("bootout", f"{self._domain()}/{LABEL}")

    def gone(self) -> None:
        """There is nothing to forget."""

    def others(self) -> list[str]:
        return []

    def state(self) -> State:
        told = self._call("print", f"{self._domain()}/{LABEL}")
        pid = re.search(r"^\s*pid = (\d+)$", told.stdout, re.MULTILINE)
        how = re.search(r"^\s*state = (.+)$", told.stdout, re.MULTILINE)
        loaded = told.returncode == 0
        active, text = pid is not None, how[1] if how else "not loaded"
        return State(loaded, loaded, active, int(pid[1]) if pid else None, text)

    def log(self, _file: str) -> str:
        """What the agent's own command line names."""
        return str(self._home / "Library" / "Logs" / "yolo-supervisor.log")

    def _domain(self) -> str:
        """The session at the screen; without one (a Mac that is reached by SSH) the user's own."""
        screen = f"gui/{os.getuid()}"
        return screen if self._call("print", screen).returncode == 0 else f"user/{os.getuid()}"

    def _do(self, *words: str) -> None:
        told = self._call(*words)
        if told.returncode != 0:
            raise ManagerError(f"launchctl {' '.join(words)}: {told.stderr.strip() or f'exit {told.returncode}'}")

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return _call(["launchctl", *words], self._environment)


Manager = Systemd | Launchd


def put(files: Mapping[Path, bytes]) -> dict[Path, Result]:
    """Write the files where they differ. What somebody has changed in one is kept beside it. OSError, Refused."""
    disk, done = Disk(), dict[Path, Result]()
    for path, data in files.items():
        before = read(path)
        if before == data:
            done[path] = "unchanged"
            continue
        make_folder(disk, path.parent, 0o755)
        if before is not None and not before.startswith(GENERATED):
            write_atomic(disk, path.with_name(f"{path.name}.before"), before)
        write_atomic(disk, path, data)
        fd = disk.open(path, os.O_RDONLY)
        disk.chmod(fd, 0o644)  # managers complain of others, and there is no secret in them
        disk.close(fd)
        done[path] = "written" if before is None else "replaced"
    return done


def take_away(paths: list[Path], known: Mapping[Path, bytes] | None = None) -> list[Path]:
    """Remove the files that are there, and the folders for additions if nothing else is in them.

    One that is ``known`` to be other than this is kept beside its place: somebody has changed it.
    """
    gone = [path for path in paths if os.path.lexists(path)]
    for path in gone:
        data = read(path) if known and path in known else None
        if known and data not in (None, known.get(path)) and not (data or b"").startswith(GENERATED):
            write_atomic(Disk(), path.with_name(f"{path.name}.before"), data or b"")
        remove(Disk(), path)
    for folder in {path.parent for path in paths if path.parent.name.endswith(".d")}:
        if folder.is_dir() and not os.listdir(folder):
            Disk().rmdir(folder)
    return gone


def user_name() -> str | None:
    """What the machine calls the user; None if it knows nobody of that number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def lingers(user: str) -> bool:
    """Whether the user's services run without a login."""
    return os.path.exists(f"/var/lib/systemd/linger/{user}")


def _elsewhere(words: tuple[str, ...]) -> str:
    """The addition to a unit whose program is not at the usual place."""
    start, reload = quoted((*words, "run")), quoted((*words, "service", "reload"))
    return f"""\
{GENERATED.decode()}
[Service]
ExecStart=
ExecStart={start}
ExecReload=
ExecReload={reload}
"""


def _surroundings() -> str:
    """What may be the reason, and what to do instead."""
    release = platform.release().lower()
    if "microsoft" in release:
        return (
            ": this is WSL; WSL 2 has one if /etc/wsl.conf says systemd=true under [boot] (then: wsl --shutdown). Else "
            "start yolo-supervisor run in a terminal of its own"
        )
    first = (read_or_none(Path("/proc/1/environ")) or b"").split(b"\0")
    marks = ("/.dockerenv", "/run/.containerenv")
    if any(map(os.path.exists, marks)) or any(each.startswith(b"container=") for each in first):
        return ": this is a container; start yolo-supervisor run as a process of its own in it"
    return ": let your init start yolo-supervisor run, as the user whose agents it watches"


def _call(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 124, "", str(error))
