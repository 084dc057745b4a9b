"""systemd and launchd: install, start, stop and query the service."""

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

LIMIT_S = 10.0
"""The time limit of a question to the service manager, in seconds."""

JOB_LIMIT_S = 90.0
"""The time limit of a command that starts or stops a unit, in seconds: longer than the units' own limits."""

JOBS = frozenset({"start", "stop", "restart", "--now", "bootstrap", "bootout", "kickstart"})
"""The arguments of commands that wait for a start or a stop."""

LABEL = "org.yolo-supervisor"
NOTIFY_RELOAD = 253
"""The first version of systemd that knows Type=notify-reload. Earlier ones silently treat it as "simple"."""

GENERATED = b"# The program is not where the unit expects it."
"""The first line of a file that every installation generates again, so that it needs no copy."""

Result = Literal["written", "replaced", "unchanged"]


def shipped() -> Path:
    """The folder of the units that we ship: in the installed package, else in the work tree."""
    package = Path(__file__).parents[1]
    packaged = package / "data" / "systemd"
    return packaged if packaged.is_dir() else package.parent / "systemd"


def program(usual: Path) -> tuple[str, ...]:
    """The command line of this program for a service, by the usual path where that is possible."""
    invoked, beside = Path(os.path.abspath(sys.argv[0])), Path(sys.executable).with_name("yolo-supervisor")
    script = next((path for path in (invoked, beside) if path.name == beside.name and os.access(path, os.X_OK)), None)
    if script is None:
        return (sys.executable, "-m", "yolo_supervisor")
    same = os.path.realpath(usual) == os.path.realpath(script)
    return (str(usual if same else script),)


def quoted(argv: tuple[str, ...]) -> str:
    """The arguments as a command line in a unit file."""
    return " ".join(
        argument
        if re.fullmatch(r"[\w./@:+=,-]+", argument)
        else '"' + argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
        for argument in argv
    )


@dataclass(frozen=True, slots=True)
class State:
    """The state of the service, as the manager reports it."""

    installed: bool
    enabled: bool
    active: bool
    pid: int | None
    text: str
    """The status text of the daemon, or the way in which it ended."""
    restarts: int | None = None


class ManagerError(Exception):
    """A command of the service manager failed. The message is the command and its output."""


class Systemd:
    """The manager of a user, or of the system, which runs a template unit for a user."""

    name = "systemd"

    def __init__(
        self, user: str = "", environment: Mapping[str, str] = os.environ, *, network: bool | None = None
    ) -> None:
        self.user = user
        """The user for whom the system's manager runs the service; empty for the caller's manager."""
        self._wants_network = network
        self.unit = f"yolo-supervisor@{user}.service" if user else "yolo-supervisor.service"
        self._template = "yolo-supervisor@.service" if user else self.unit
        folder = Path("/etc/systemd/system") if user else config_dir(environment) / "systemd" / "user"
        self.folder = Path(os.path.realpath(folder))  # the folder may be a link, if the settings are kept elsewhere
        local = Path("/usr/local") if user else (home(environment) or Path("/")) / ".local"
        self._usual = local / "bin/yolo-supervisor"
        self._environment = dict(environment)
        bus = Path(f"/run/user/{os.getuid()}")
        if not environment.get("XDG_RUNTIME_DIR") and (bus / "bus").exists():
            self._environment["XDG_RUNTIME_DIR"] = str(bus)  # after su, for example

    @property
    def command(self) -> str:
        """The command as a person types it."""
        return "systemctl" if self.user else "systemctl --user"

    def missing(self) -> str | None:
        """The reason why the service cannot be installed; None if it can."""
        if shutil.which("systemctl") is None:
            return f"there is no systemd here{_surroundings()}"
        if not os.path.isdir("/run/systemd/system"):
            return f"systemd does not run here{_surroundings()}"
        if self.user:
            return None
        answer = self._call("show", "--property=Version")
        if answer.returncode == 0:
            return None
        return (
            f"your user manager cannot be reached ({answer.stderr.strip()}): log in at the machine or by ssh, "
            "since su and sudo start none; or let root say: loginctl enable-linger USER; or install it with --system"
        )

    def version(self) -> int:
        match = re.match(r"\d+", self._call("show", "--property=Version", "--value").stdout)
        return int(match[0]) if match else 0

    def files(self) -> dict[Path, bytes]:
        """The files of the service by path: the shipped ones, and one for an unusual program path."""
        files = {self.folder / self._template: (shipped() / self._template).read_bytes()}
        additions = self.folder / f"{self._template}.d"
        if (argv := program(self._usual)) != (str(self._usual),):
            files[additions / "10-program.conf"] = _program_conf(argv).encode()
        if self.version() >= NOTIFY_RELOAD:
            files[additions / "20-notify-reload.conf"] = (shipped() / "notify-reload.conf").read_bytes()
        if not self.user:
            files[self.folder / "yolo-tmux@.service"] = (shipped() / "yolo-tmux@.service").read_bytes()
        if self.network if self._wants_network is None else self._wants_network:
            files[self.network_file] = (shipped() / "network.conf").read_bytes()
        return files

    @property
    def network_file(self) -> Path:
        """The addition by which the service may use the network. Each user's service has a separate one."""
        return self.folder / f"{self.unit}.d" / "30-network.conf"

    @property
    def network(self) -> bool:
        """Whether that addition is there."""
        return os.path.lexists(self.network_file)

    def unshared(self) -> list[Path]:
        """The files that no other unit uses."""
        return [self.network_file]

    def obsolete(self) -> list[Path]:
        """The files of an earlier installation that this one does not need."""
        additions = self.folder / f"{self._template}.d"
        optional = [additions / name for name in ("10-program.conf", "20-notify-reload.conf")] + [self.network_file]
        return [path for path in optional if path not in self.files() and os.path.lexists(path)]

    def enable(self) -> None:
        self._do("daemon-reload")
        self._do("enable", self.unit)

    def start(self, restart: bool) -> None:
        """Start the service; ``restart`` it if its files have changed."""
        self._call("reset-failed", self.unit)
        self._do("restart" if restart else "start", self.unit)

    def disable(self) -> None:
        self._do("disable", "--now", self.unit)

    def gone(self) -> None:
        """Have the manager forget the service, after its files were removed."""
        self._do("daemon-reload")
        self._call("reset-failed", self.unit)

    def others(self) -> list[str]:
        """The other units that use the same files."""
        if not self.user:
            return []
        units = {link.name for link in self.folder.glob("*.wants/yolo-supervisor@*.service")}
        listed = self._call("list-units", "yolo-supervisor@*.service", "--all", "--plain", "--no-legend").stdout
        units |= {line.split()[0] for line in listed.splitlines() if line.startswith("yolo-supervisor@")}
        return sorted(units - {self.unit})

    def start_tmux(self, name: str) -> int | None:
        """Start the tmux server ``yolo-tmux@NAME`` unless it runs; its pid, None if there is no such unit here.

        ``ManagerError`` if it cannot be started.
        """
        unit = f"yolo-tmux@{name}.service"
        if self.missing() is not None:
            return None
        if self._call("show", unit, "--property=LoadState", "--value").stdout.strip() != "loaded":
            return None
        self._do("start", unit)
        pid = self._call("show", unit, "--property=MainPID", "--value").stdout.strip()
        if not pid.isdigit() or pid == "0":
            raise ManagerError(f"{self.command} start {unit}: it has ended again")
        return int(pid)

    def state(self) -> State:
        keys = "LoadState,UnitFileState,ActiveState,SubState,Result,MainPID,StatusText,NRestarts,ExecMainStatus"
        lines = self._call("show", self.unit, f"--property={keys}").stdout.splitlines()
        properties = dict(line.split("=", 1) for line in lines if "=" in line)
        active = properties.get("ActiveState") in ("active", "reloading")
        pid, restarts = properties.get("MainPID", "0"), properties.get("NRestarts", "")
        text = f"{properties.get('ActiveState', 'unknown')} ({properties.get('SubState', 'unknown')})"
        if properties.get("Result", "success") != "success":
            text += f": {properties['Result']}, exit status {properties.get('ExecMainStatus')}"
        return State(
            installed=properties.get("LoadState") == "loaded",
            enabled=properties.get("UnitFileState") == "enabled",
            active=active,
            pid=int(pid) if active and pid.isdigit() and pid != "0" else None,
            text=properties.get("StatusText") or text if active else text,
            restarts=int(restarts) if restarts.isdigit() else None,
        )

    def log(self, file: str) -> str:
        """The command or file that shows the daemon's log.

        ``file`` is the one that its configuration names.
        """
        if file:
            return file
        if log.journal_is_volatile():
            environment = {"HOME": pwd.getpwnam(self.user).pw_dir} if self.user else self._environment
            return str(log.user_copy(environment))
        return f"journalctl {'-u' if self.user else '--user -u'} {self.unit.removesuffix('.service')}"

    def _do(self, *arguments: str) -> None:
        answer = self._call(*arguments)
        if answer.returncode != 0:
            reason = answer.stderr.strip() or f"exit {answer.returncode}"
            raise ManagerError(f"{self.command} {' '.join(arguments)}: {reason}")

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        scope = [] if self.user else ["--user"]
        return _call(["systemctl", *scope, "--no-pager", *arguments], self._environment)


class Launchd:
    """A launchd agent of the user. It has not been tried on a Mac yet."""

    name = "launchd"
    user = ""
    command = "launchctl"
    network = None

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
            return f"the agent starts {usual}, which does not exist: install by pipx or uv tool, or link it there"
        return None

    def files(self) -> dict[Path, bytes]:
        return {self.folder / f"{LABEL}.plist": (shipped() / f"{LABEL}.plist").read_bytes()}

    def obsolete(self) -> list[Path]:
        return []

    def enable(self) -> None:
        make_folder(Disk(), self._home / "Library" / "Logs")
        self._call("enable", f"{self._domain()}/{LABEL}")

    def start(self, restart: bool) -> None:
        domain = self._domain()
        if restart:
            self._call("bootout", f"{domain}/{LABEL}")
        if not self.state().installed:
            self._do("bootstrap", domain, str(self.folder / f"{LABEL}.plist"))
        self._do("kickstart", f"{domain}/{LABEL}")

    def disable(self) -> None:
        if self.state().installed:
            self._do("bootout", f"{self._domain()}/{LABEL}")

    def gone(self) -> None:
        """Do nothing: launchd keeps no state of a removed service."""

    def others(self) -> list[str]:
        return []

    def unshared(self) -> list[Path]:
        return []

    def state(self) -> State:
        answer = self._call("print", f"{self._domain()}/{LABEL}")
        pid = re.search(r"^\s*pid = (\d+)$", answer.stdout, re.MULTILINE)
        state = re.search(r"^\s*state = (.+)$", answer.stdout, re.MULTILINE)
        loaded = answer.returncode == 0
        active, text = pid is not None, state[1] if state else "not loaded"
        return State(loaded, loaded, active, int(pid[1]) if pid else None, text)

    def log(self, _file: str) -> str:
        """The log file on the agent's command line."""
        return str(self._home / "Library" / "Logs" / "yolo-supervisor.log")

    def _domain(self) -> str:
        """The launchd domain: the login session at the screen, else (on a Mac reached by SSH) the user's."""
        screen = f"gui/{os.getuid()}"
        return screen if self._call("print", screen).returncode == 0 else f"user/{os.getuid()}"

    def _do(self, *arguments: str) -> None:
        answer = self._call(*arguments)
        if answer.returncode != 0:
            reason = answer.stderr.strip() or f"exit {answer.returncode}"
            raise ManagerError(f"launchctl {' '.join(arguments)}: {reason}")

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _call(["launchctl", *arguments], self._environment)


Manager = Systemd | Launchd


def put(files: Mapping[Path, bytes]) -> dict[Path, Result]:
    """Write the files that differ. A copy of a file that a person has changed is kept beside it.

    Raises OSError, Refused.
    """
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
        disk.chmod(fd, 0o644)  # managers warn about other modes, and the files contain no secret
        disk.close(fd)
        done[path] = "written" if before is None else "replaced"
    return done


def take_away(paths: list[Path], known: Mapping[Path, bytes] | None = None) -> list[Path]:
    """Remove the files of these paths, and then the folders for additions if they are empty.

    A copy is kept beside a file whose content is not the ``known`` one, because a person has changed it.
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
    """The name of the current user; None if the machine has none for the user id."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def lingers(user: str) -> bool:
    """Whether the user's services run without a login (linger)."""
    return os.path.exists(f"/var/lib/systemd/linger/{user}")


def _program_conf(argv: tuple[str, ...]) -> str:
    """The addition to a unit if the program is not at the usual place."""
    start, reload = quoted((*argv, "run")), quoted((*argv, "service", "reload"))
    return f"""\
{GENERATED.decode()}
[Service]
ExecStart=
ExecStart={start}
ExecReload=
ExecReload={reload}
"""


def _surroundings() -> str:
    """A possible reason why there is no systemd, and an alternative; continues a sentence."""
    release = platform.release().lower()
    if "microsoft" in release:
        return (
            ": this is WSL; WSL 2 has one if /etc/wsl.conf says systemd=true under [boot] (then: wsl --shutdown). Else "
            "start yolo-supervisor run in a separate terminal"
        )
    first = (read_or_none(Path("/proc/1/environ")) or b"").split(b"\0")
    marks = ("/.dockerenv", "/run/.containerenv")
    if any(map(os.path.exists, marks)) or any(entry.startswith(b"container=") for entry in first):
        return ": this is a container; start yolo-supervisor run as a separate process in it"
    return ": let your init start yolo-supervisor run, as the user whose agents it watches"


def _call(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    limit_s = LIMIT_S if JOBS.isdisjoint(command) else JOB_LIMIT_S
    try:
        return subprocess.run(
            command, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]} has not answered within {limit_s:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 124, "", str(error))
