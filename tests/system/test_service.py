"""The daemon as a service: under a real systemd that stops, kills, restarts and reboots it, while agents go on.

A box is a real systemd as PID 1 in separate namespaces; in it each test has its own user, with a real user manager.
"""

from __future__ import annotations

import contextlib
import json
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from support.box import Box, Unavailable
from support.budget import cases
from support.cli import Cli
from support.daemon import QUICK, StartDaemon
from support.plists import lint
from support.processes import Children
from support.project import given_back, write_task
from support.team import Team
from support.wait import LIMIT_S, wait_until
from yolo_supervisor import __version__
from yolo_supervisor.cli import service
from yolo_supervisor.service import manager
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.user_dirs import project_state_dir

SYSTEMD = Path(__file__).parents[2] / "systemd"
SCRIPT = Path(sys.executable).with_name("yolo-supervisor")
UNIT = "yolo-supervisor"
ROOT = os.environ.get("YOLO_BOX_ROOT", "/")
"""The root folder of another system (made by debootstrap, say) to try on, instead of this machine's own."""


# -- the world -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def booted() -> Iterator[Box]:
    """A separate machine under a real systemd, with the program under test installed."""
    if not SCRIPT.exists():
        pytest.skip(f"the program is not installed beside {sys.executable}")
    wanted = {Path(sys.prefix), Path(sys.base_prefix), SYSTEMD.parent}
    wanted |= {Path(entry).resolve() for entry in sys.path if os.path.isdir(entry)}
    shown = {path for path in wanted if not any(path != other and path.is_relative_to(other) for other in wanted)}
    above = {str(folder) for path in shown for folder in path.parents} - {"/", "/tmp"}
    preboot = "\n".join(
        f'[ ! -d "$R"{shlex.quote(folder)} ] || chmod o+x "$R"{shlex.quote(folder)}' for folder in above
    )
    try:
        box = Box(ROOT, preboot=preboot, binds=[f"{path}:{path}" for path in shown])
        box.start()
    except Unavailable as why:
        pytest.skip(f"no systemd can be booted here: {why}")
    try:
        yield box
    finally:
        box.stop()


@pytest.fixture(scope="module")
def machine() -> Iterator[Any]:
    with booted() as box:
        yield box


class Person:
    """A user of the machine: a home, a user manager that lingers, a project, tmux, agents."""

    def __init__(self, box: Any, name: str) -> None:
        self.box = box
        self.name = name
        self.home = f"/home/{name}"
        box.run("useradd", "--create-home", "--shell", "/bin/bash", name)
        self.uid = int(box.run("id", "-u", name).stdout)
        box.run("loginctl", "enable-linger", name)
        self.wait_for_manager()

    def wait_for_manager(self) -> None:
        wait_until(
            lambda: self.run("systemctl", "--user", "is-system-running", "--wait", check=False).stdout, "a manager"
        )

    def run(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        result: subprocess.CompletedProcess[str] = self.box.run(*words, user=self.name, check=check, **options)
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def cli(self, *words: str, code: int = 0) -> str:
        result = self.run(str(SCRIPT), *words, check=False)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout or result.stderr

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.cli(*words, "--json", code=code))

    def systemctl(self, *words: str, check: bool = True) -> int:
        return self.run("systemctl", "--user", *words, check=check).returncode

    def show(self, key: str) -> str:
        shown: str = self.run("systemctl", "--user", "show", UNIT, f"--property={key}", "--value").stdout.strip()
        return shown

    def path(self, name: str) -> Path:
        """A file below the home, as a path outside the box."""
        return Path(f"/proc/{self.box.pid1}/root{self.home}", name)

    def write(self, name: str, text: str) -> Path:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.own()
        return path

    def own(self) -> None:
        self.box.run("chown", "-R", f"{self.name}:{self.name}", self.home)

    @property
    def config(self) -> str:
        return ".config/yolo-supervisor/supervisor.toml"

    def name_project(self) -> None:
        """A project, and a configuration that names it."""
        self.path("shop/.yolo-planning").mkdir(parents=True, exist_ok=True)
        self.write(self.config, 'projects = ["~/shop"]\n' + QUICK)

    def state(self, name: str) -> Path:
        """A file in the project's state folder, as a path outside the box."""
        folder = project_state_dir(f"{self.home}/shop", {"HOME": str(self.home)})
        return Path(f"/proc/{self.box.pid1}/root{folder}", name)

    def supervise(self, **settings: str) -> int:
        """Install the service, with these settings of the unit changed; the daemon's pid."""
        self.name_project()
        if settings:
            unit = [f"[Service]\n{key}={value}\n" for key, value in settings.items()]
            self.write(f".config/systemd/user/{UNIT}.service.d/30-test.conf", "".join(unit))
        document = self.json("service", "install")
        assert document["active"], document
        return int(document["pid"])

    def pid(self) -> int:
        return int(self.show("MainPID"))

    def history(self) -> list[dict[str, Any]]:
        return history(self.state("journal.jsonl"))

    def did(self, action: str, key: str) -> bool:
        return any(entry["action"] == action and entry["key"] == key for entry in self.history())

    def log_in(self) -> None:
        """A real login session, with a tmux server in it."""
        self.box.run(
            "systemd-run", "--collect", "--quiet", "-p", f"User={self.name}", "-p", "PAMName=login",
            "-p", "Type=forking",
            "tmux", "-L", "team", "-f", "/dev/null", "new-session", "-d", "-s", "first", "sleep 600",
        )  # fmt: skip

    def tmux(self, *words: str) -> str:
        return self.run("tmux", "-L", "team", *words).stdout.strip()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach a person to the session meanwhile."""
        words = ("script", "--quiet", "--command", "tmux -L team attach -t first", "/dev/null")
        client = subprocess.Popen(
            self.box.argv(*words, user=self.name, env={"TERM": "xterm"}),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        wait_until(lambda: self.tmux("list-clients"), "a person to be attached")
        yield
        self.tmux("detach-client", "-s", "first")
        client.communicate(timeout=LIMIT_S)

    def wait_for_looks(self) -> None:
        """Wait for a whole look at the sessions."""
        seen: set[str] = set()

        def looks() -> bool:
            document = json.loads(self.state("daemon.json").read_text())
            seen.update(str(each["last_tick_at"]) for each in document["watchers"] if each["name"] == "sessions")
            return len(seen) > 2

        wait_until(looks, "the sessions to be looked at")

    def agent(self, name: str, program: str = "") -> int:
        """An agent with a task, in tmux, known to the daemon; its pid."""
        self.task(name)
        body = shlex.quote(f"{program}\nimport time\ntime.sleep(600)")
        flags = f"--agent-id {name}@red --agent-name {name} --team-name red"
        line = f"cd ~/shop && exec {sys.executable} -c {body} {flags}"
        pid = int(self.tmux("new-window", "-d", "-P", "-F", "#{pane_pid}", line))
        wait_until(lambda: self.did("registered", f"{name}@red"), f"{name} to be found")
        return pid

    def task(self, owner: str) -> None:
        write_task(self.path(".claude"), "red", owner, owner=owner, status="in_progress")
        self.own()

    def alive(self, pid: int) -> bool:
        """Whether it runs: a zombie may wait for ever for a tmux server to reap it."""
        try:
            stat = Path(f"/proc/{self.box.pid1}/root/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"

    def given_back(self, name: str) -> bool:
        return given_back(self.path(f".claude/tasks/red/{name}.json"))

    def assert_heals(self, name: str) -> None:
        """Assert that the daemon is at work: an agent that is killed now loses its task."""
        self.box.run("kill", "-KILL", str(self.agent(name)))
        wait_until(lambda: self.given_back(name), f"{name}'s task to be given back")


@pytest.fixture
def person(machine: Any, request: pytest.FixtureRequest) -> Iterator[Person]:
    number = sum(1 for _ in Path(f"/proc/{machine.pid1}/root/home").iterdir())
    someone = Person(machine, f"user{number}")
    yield someone
    machine.run("loginctl", "disable-linger", someone.name)
    machine.run("loginctl", "terminate-user", someone.name, check=False)


# -- installation --------------------------------------------------------------------------------------------------


def test_install_writes_exactly_the_shipped_files_and_systemd_has_nothing_to_say_on_them(person: Person) -> None:
    person.name_project()
    person.run("sh", "-c", f"mkdir -p ~/.local/bin && ln -s {SCRIPT} ~/.local/bin/")

    document = person.json("service", "install")

    assert (document["enabled"], document["active"], document["linger"], document["notes"]) == (True, True, True, [])
    folder = person.path(".config/systemd/user")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    shipped = {f"{UNIT}.service", "yolo-tmux@.service"}
    assert {path.name: path.read_bytes() for path in files if path.parent == folder} == {
        name: (SYSTEMD / name).read_bytes() for name in shipped
    }
    assert {path.name for path in files if path.parent != folder} <= {"20-notify-reload.conf"}
    verified = person.run("systemd-analyze", "--user", "--man=no", "verify", f"{UNIT}.service", "yolo-tmux@x.service")
    assert verified.stderr == ""
    assert person.show("StatusText") == "1 projects, 0 agents"
    assert person.show("OOMPolicy") == "continue"


@pytest.mark.thorough
def test_install_can_be_repeated_and_uninstall_leaves_nothing(person: Person) -> None:
    pid = person.supervise()
    before = {path for path in person.path(".config/systemd").rglob("*") if path.is_file()}

    again = person.json("service", "install")

    assert {file["result"] for file in again["files"]} == {"unchanged"}
    assert again["pid"] == pid
    removed = person.json("service", "uninstall")["removed"]
    assert len(removed) == len([path for path in before if not path.is_symlink()])
    assert not any(path.is_file() or path.is_symlink() for path in person.path(".config/systemd").rglob("*"))
    assert person.show("LoadState") == "not-found"
    assert not person.alive(pid)
    assert person.json("service", "uninstall")["removed"] == []
    assert person.json("service", "status", code=1)["installed"] is False


CONNECT = f"{sys.executable} -c 'import socket; socket.socket(socket.AF_INET)'"
"""A command that needs the network. Commands before the daemon run in the same sandbox."""


def test_the_service_may_use_the_network_only_after_it_was_asked_for(person: Person) -> None:
    person.name_project()
    person.run("sh", "-c", f"mkdir -p ~/.local/bin && ln -s {SCRIPT} ~/.local/bin/")
    person.write(f".config/systemd/user/{UNIT}.service.d/90-test.conf", f"[Service]\nExecStartPre=-{CONNECT}\n")
    file = person.path(f".config/systemd/user/{UNIT}.service.d/30-network.conf")

    def connects() -> bool:
        return "code=exited, status=0" in person.run("systemctl", "--user", "status", UNIT, check=False).stdout

    def shows() -> tuple[bool, bool, bool]:
        """What the program says of it: in its status, as a document, and by the doctor."""
        return (
            "may use the network" in person.cli("service", "status"),
            person.json("service", "status")["network"],
            "may use the network" in person.cli("doctor", "--project", f"{person.home}/shop"),
        )

    person.cli("service", "install")
    assert (file.exists(), connects(), shows()) == (False, False, (False, False, False))

    person.cli("service", "install", "--network")
    assert file.read_bytes() == (SYSTEMD / "network.conf").read_bytes()
    assert (connects(), shows()) == (True, (True, True, True))
    verified = person.run("systemd-analyze", "--user", "--man=no", "verify", f"{UNIT}.service")
    assert verified.stderr == ""

    again = person.json("service", "install")
    assert (again["network"], {each["result"] for each in again["files"]}) == (True, {"unchanged"})

    person.cli("service", "install", "--no-network")
    assert (file.exists(), connects(), shows()) == (False, False, (False, False, False))

    person.cli("service", "install", "--network")
    removed = person.json("service", "uninstall")["removed"]
    assert f"{person.home}/.config/systemd/user/{UNIT}.service.d/30-network.conf" in removed
    assert not file.exists()


def test_of_a_system_service_one_users_may_use_the_network(machine: Any, person: Person) -> None:
    bob = Person(machine, f"{person.name}b")
    install = (str(SCRIPT), "service", "install", "--system", "--user")
    folder = Path(f"/proc/{machine.pid1}/root/etc/systemd/system")
    try:
        for each, more in ((person, ["--network"]), (bob, [])):
            each.name_project()
            machine.run(*install, each.name, *more)

        def allowed(name: str) -> tuple[set[str], bool]:
            keys = ("show", f"{UNIT}@{name}", "--value", "--property")
            families = machine.run("systemctl", *keys, "RestrictAddressFamilies").stdout.split()
            return set(machine.run("systemctl", *keys, "IPAddressDeny").stdout.split()), "AF_INET" in families

        assert allowed(person.name) == (set(), True)
        assert allowed(bob.name) == ({"0.0.0.0/0", "::/0"}, False)
        machine.run(str(SCRIPT), "service", "uninstall", "--system", "--user", person.name)
        assert not (folder / f"{UNIT}@{person.name}.service.d").exists()
        assert (folder / f"{UNIT}@.service").exists()
    finally:
        machine.run(str(SCRIPT), "service", "uninstall", "--system", "--user", bob.name)
    assert not list(folder.rglob("yolo-supervisor*"))


@pytest.mark.parametrize("linked", cases(["systemd", "systemd/user"], ["systemd"]))
def test_settings_may_be_kept_program_conf_and_linked_to(person: Person, linked: str) -> None:
    person.name_project()
    real, link = f"{person.home}/my dots", f"{person.home}/.config/{linked}"
    person.run("sh", "-c", 'mkdir -p "$1" "${2%/*}" && ln -s "$1" "$2"', "sh", real, link)

    person.cli("service", "install")
    assert person.show("ActiveState") == "active"
    person.cli("service", "uninstall")

    assert person.run("find", real, "-type", "f").stdout == ""


def test_an_edited_unit_is_kept_beside_the_new_one(person: Person) -> None:
    changed = person.write(f".config/systemd/user/{UNIT}.service", "[Service]\nExecStart=/bin/mine\n")
    person.name_project()

    document = person.json("service", "install")

    assert "replaced" in {file["result"] for file in document["files"]}
    assert changed.read_bytes() == (SYSTEMD / f"{UNIT}.service").read_bytes()
    assert "/bin/mine" in changed.with_name(f"{changed.name}.before").read_text()


def test_without_projects_it_is_installed_but_not_started_and_says_where_to_name_them(person: Person) -> None:
    document = person.json("service", "install")

    assert (document["enabled"], document["active"]) == (True, False)
    assert person.config in document["notes"][0]
    assert person.show("NRestarts") == "0"


def test_a_configuration_error_is_reported_before_installation(person: Person) -> None:
    person.write(person.config, 'project = ["~/shop"]\n')

    assert "did you mean 'projects'?" in person.cli("service", "install", code=78)
    assert not person.path(".config/systemd").exists()


def test_without_a_user_manager_install_says_what_to_do(machine: Any, person: Person) -> None:
    machine.run("systemctl", "stop", f"user@{person.uid}.service")

    result = person.cli("service", "install", code=69)

    assert "your user manager cannot be reached" in result
    assert "enable-linger" in result
    machine.run("systemctl", "start", f"user@{person.uid}.service")


@pytest.mark.thorough
def test_a_program_in_an_oddly_named_folder_is_started(person: Person) -> None:
    person.name_project()
    odd = f"{person.home}/a b%h"
    person.run("sh", "-c", f"mkdir '{odd}' && ln -s {SCRIPT} '{odd}/yolo-supervisor'")

    document = json.loads(person.run(f"{odd}/yolo-supervisor", "service", "install", "--json").stdout)

    assert document["active"] is True
    assert (
        f'ExecStart="{odd.replace("%", "%%")}/yolo-supervisor" run'
        in person.path(f".config/systemd/user/{UNIT}.service.d/10-program.conf").read_text()
    )
    assert person.systemctl("reload", UNIT) == 0


# -- under systemd -------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_systemctl_reload_returns_once_the_reload_is_complete(person: Person) -> None:
    pid = person.supervise()
    status = Path(f"/proc/{person.box.pid1}/root/proc/{pid}/status")
    person.write(person.config, 'mode = "observe"\nprojects = ["~/shop"]\n')
    if person.show("Type") == "notify-reload":  # there systemd itself waits, and wakes a daemon that is stopped
        assert person.systemctl("reload", UNIT) == 0
        assert person.show("StatusText") == "1 projects, 0 agents, observing"
        return
    person.box.run("kill", "-STOP", str(pid))

    client = subprocess.Popen(person.box.argv("systemctl", "--user", "reload", UNIT, user=person.name))

    wait_until(lambda: re.search(r"^ShdPnd:\t\d+1$", status.read_text(), re.MULTILINE), "SIGHUP to wait for the daemon")
    assert [person.show("ActiveState") for _ in range(3)] == ["reloading"] * 3
    person.box.run("kill", "-CONT", str(pid))
    assert client.wait(LIMIT_S) == 0
    assert person.show("StatusText") == "1 projects, 0 agents, observing"
    assert (person.pid(), person.show("ActiveState")) == (pid, "active")


def test_a_reload_that_is_refused_fails_and_says_why_and_the_daemon_goes_on(person: Person) -> None:
    pid = person.supervise()
    person.write(person.config, 'project = ["~/shop"]\n')

    assert person.systemctl("reload", UNIT, check=False) != 0 or person.show("Type") == "notify-reload"

    assert "did you mean 'projects'?" in person.show("StatusText")
    assert (person.pid(), person.show("ActiveState")) == (pid, "active")
    person.write(person.config, 'projects = ["~/shop"]\n')
    person.systemctl("reload", UNIT)
    assert person.show("StatusText") == "1 projects, 0 agents"


@pytest.mark.parametrize("number", cases(["KILL", "SEGV", "STOP"], ["STOP"]))
def test_a_daemon_that_is_killed_crashes_or_hangs_is_back_and_no_agent_is_harmed(person: Person, number: str) -> None:
    person.log_in()
    pid = person.supervise(WatchdogSec="2")
    agent = person.agent("dev-1")

    person.box.run("kill", f"-{number}", str(pid))

    wait_until(lambda: person.pid() not in (0, pid) and person.show("ActiveState") == "active", "another daemon")
    assert person.show("NRestarts") == "1"
    person.assert_heals("dev-2")
    assert person.alive(agent)
    assert not person.given_back("dev-1")


@pytest.mark.thorough
def test_a_stop_a_start_a_restart_and_an_uninstall_harm_no_agent(person: Person) -> None:
    person.log_in()
    first = person.supervise()
    agent = person.agent("dev-1")

    person.systemctl("restart", UNIT)

    second = person.pid()
    assert second != first
    person.systemctl("stop", UNIT)
    assert (person.show("Result"), person.show("ExecMainStatus")) == ("success", "0")
    assert not person.alive(second)
    person.systemctl("start", UNIT)
    person.assert_heals("dev-2")
    person.json("service", "uninstall")
    assert person.alive(agent)
    assert not person.given_back("dev-1")


@pytest.mark.thorough
def test_a_tmux_server_in_a_separate_unit_outlives_the_daemon(person: Person) -> None:
    person.supervise()
    person.systemctl("start", "yolo-tmux@team")
    person.tmux("new-session", "-d", "sleep 600")
    agent = person.agent("dev-1")

    person.systemctl("stop", UNIT)
    person.json("service", "uninstall")

    assert person.alive(agent)
    person.systemctl("stop", "yolo-tmux@team")
    wait_until(lambda: not person.alive(agent), "the end of the agents with their own server")


@pytest.mark.thorough
def test_a_crash_loop_ends(person: Person) -> None:
    person.write(self_config := person.config, 'projects = ["~/nowhere"]\n')
    person.write(f".config/systemd/user/{UNIT}.service.d/30-test.conf", "[Service]\nRestartSec=0.1\n")

    result = person.cli("service", "install", code=1)

    assert "journalctl --user -u yolo-supervisor" in result
    wait_until(lambda: person.show("ActiveState") == "failed", "the manager to give up")
    assert int(person.show("NRestarts")) == 5
    assert "exit status 1" in person.json("service", "status", code=1)["text"]
    person.write(self_config, 'projects = ["~/shop"]\n')
    person.path("shop").mkdir()
    person.own()
    assert person.json("service", "install")["active"] is True


@pytest.mark.thorough
def test_an_invalid_configuration_is_reported_and_not_retried(person: Person) -> None:
    person.supervise()
    person.systemctl("stop", UNIT)
    person.write(person.config, 'project = ["~/shop"]\n')

    assert person.systemctl("start", UNIT, check=False) == 1

    assert (person.show("ActiveState"), person.show("ExecMainStatus")) == ("failed", "78")
    assert person.show("NRestarts") == "0"
    said = [str(line["MESSAGE"]) for line in person.box.journal(f"_SYSTEMD_USER_UNIT={UNIT}.service")]
    assert any(f"{person.config}:1" in line and "did you mean 'projects'?" in line for line in said)


def test_log_lines_reach_the_systemd_journal_with_fields(person: Person) -> None:
    person.supervise()
    person.write(person.config, 'project = ["~/shop"]\n')
    person.systemctl("reload", UNIT, check=False)

    (entry,) = person.box.journal("YOLO_EVENT=reload_refused", f"_UID={person.uid}")

    assert entry["PRIORITY"] == "3"
    assert entry["SYSLOG_IDENTIFIER"] == "yolo-supervisor"
    assert entry["_SYSTEMD_USER_UNIT"] == f"{UNIT}.service"
    assert "did you mean 'projects'?" in entry["YOLO_ERROR"]
    assert json.loads(entry["MESSAGE"])["event"] == "reload_refused"


@pytest.mark.thorough
def test_where_the_journal_is_kept_in_memory_a_copy_that_the_user_can_read_is_kept_and_named() -> None:
    with booted() as box:
        box.run("sh", "-c", "rm -r /var/log/journal && systemctl restart systemd-journald")
        person = Person(box, "alice")
        person.supervise()
        copy = person.path(".local/state/yolo-supervisor/log.jsonl")
        person.write(person.config, 'project = ["~/shop"]\n')

        person.systemctl("reload", UNIT, check=False)

        lines = [json.loads(line) for line in copy.read_text().splitlines()]
        (refused,) = (line for line in lines if line["event"] == "reload_refused")
        (entry,) = box.journal("YOLO_EVENT=reload_refused", f"_UID={person.uid}")
        assert json.loads(entry["MESSAGE"]) == refused
        assert (copy.stat().st_mode & 0o777, copy.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert copy.stat().st_uid == person.uid
        assert "reload_refused" in person.run("cat", f"{person.home}/.local/state/yolo-supervisor/log.jsonl").stdout
        log = f"{person.home}/.local/state/yolo-supervisor/log.jsonl"
        assert person.json("service", "status")["log"] == log
        assert f"Its log: {log}" in person.cli("service", "status")
        person.write(person.config, 'projects = ["~/shop"]\n')
        findings = person.json("--project", f"{person.home}/shop", "doctor")["findings"]
        assert f"the service's log: {log}" in [each["what"] for each in findings]


@pytest.mark.thorough
def test_where_the_journal_is_kept_on_the_disk_there_is_no_copy_and_the_command_is_named(person: Person) -> None:
    person.supervise()

    assert person.json("service", "status")["log"] == "journalctl --user -u yolo-supervisor"
    assert not person.path(".local/state/yolo-supervisor/log.jsonl").exists()
    person.write(person.config, 'projects = ["~/shop"]\n[log]\nfile = "~/own.log"\n')
    person.systemctl("restart", UNIT)
    person.write("shop/.yolo-planning/supervisor.toml", "[agents\n")
    assert person.json("service", "status")["log"] == "~/own.log"


@pytest.mark.thorough
def test_a_tmux_server_in_the_services_cgroup_is_reported_by_daemon_and_doctor(person: Person) -> None:
    person.log_in()
    person.supervise()
    server = person.tmux("display-message", "-p", "#{pid}")
    inside = f"/sys/fs/cgroup{person.show('ControlGroup')}/cgroup.procs"

    person.box.sh(f"echo {server} > {inside}")

    def warnings() -> list[str]:
        return [
            str(line.get("YOLO_ERROR")) for line in person.box.journal("YOLO_EVENT=cgroup_shared", f"_UID={person.uid}")
        ]

    wait_until(warnings, "the daemon to notice")
    assert f"would kill tmux server {server}" in warnings()[0]
    findings = person.json("--project", f"{person.home}/shop", "doctor", code=1)["findings"]
    (found,) = (each for each in findings if f"tmux server {server}" in each["what"])
    assert (found["level"], "do not stop" in found["do"]) == ("problem", True)


@pytest.mark.thorough
def test_the_doctor_knows_a_service_that_was_masked(person: Person) -> None:
    person.name_project()
    person.systemctl("mask", UNIT)

    assert "the service is masked" in person.run(str(SCRIPT), "doctor", "--project", f"{person.home}/shop").stdout


@pytest.mark.thorough
def test_the_doctor_reports_the_effect_of_a_logout_and_a_service_that_is_down(person: Person) -> None:
    person.supervise()

    def findings(code: int) -> dict[str, str]:
        document = person.json("--project", f"{person.home}/shop", "doctor", code=code)
        return {each["what"]: each["do"] for each in document["findings"]}

    assert not any("log out" in what for what in findings(0))
    Path(f"/proc/{person.box.pid1}/root/var/lib/systemd/linger/{person.name}").unlink()
    assert "loginctl enable-linger" in findings(0).values()
    person.systemctl("stop", UNIT)
    assert "systemctl --user restart yolo-supervisor" in findings(1).values()


# -- reboots, and the system's service -------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("how", cases(["reboot", "power_cut"], ["power_cut"]))
def test_after_a_reboot_the_state_is_kept_and_the_agents_tasks_are_healed(how: str) -> None:
    """The box has another pid namespace at each boot, as a container has: the agent of the earlier boot is unknown."""
    with booted() as box:
        person = Person(box, "alice")
        person.log_in()
        person.supervise()
        person.write(person.config, f'projects = ["~/shop"]\n{QUICK}[tasks]\nunknown_limit_s = 1.0\n')
        person.agent("dev-1")
        before = person.history()

        getattr(box, how)()

        person.wait_for_manager()
        wait_until(lambda: person.given_back("dev-1"), "the task of an agent of another boot to be given back")
        assert person.show("ActiveState") == "active"
        assert person.history()[: len(before)] == before


@pytest.mark.thorough
def test_the_system_template_heals_inside_its_hardening(machine: Any, person: Person) -> None:
    person.log_in()
    person.name_project()
    unit = f"{UNIT}@{person.name}.service"
    install = (str(SCRIPT), "service", "install", "--system", "--user", person.name, "--json")
    assert "needs root" in person.run(*install, check=False).stderr

    answer = json.loads(machine.run(*install).stdout)

    assert (answer["unit"], answer["enabled"], answer["active"], answer["scope"]) == (unit, True, True, "system")
    assert machine.run("systemd-analyze", "--man=no", "verify", unit).stderr == ""
    left = "import subprocess\nopen('left', 'w').write(str(subprocess.Popen(['setsid', 'sleep', '600']).pid))"
    agent = person.agent("dev-1", left)
    wait_until(lambda: person.path("shop/left").exists() and person.path("shop/left").read_text(), "its children")
    leftover = int(person.path("shop/left").read_text())
    trees = person.state("trees.json")
    wait_until(lambda: trees.exists() and str(leftover) in trees.read_text(), "its tree to be seen")
    machine.run("systemctl", "reload", unit)
    machine.run("kill", "-KILL", str(agent))
    wait_until(lambda: person.given_back("dev-1"), "the task to be given back")
    wait_until(lambda: not person.alive(leftover), "the leftover process to be terminated")
    other = person.agent("dev-2")
    with person.attached():
        person.wait_for_looks()
    wait_until(lambda: not person.alive(other), "the agents of a session that was left to end")
    wait_until(lambda: person.did("terminated", "dev-2@red"), "that to be recorded")
    bob = Person(machine, f"{person.name}b")
    bob.name_project()
    machine.run("systemctl", "start", f"{UNIT}@{bob.name}")  # by hand, so that no link shows it
    uninstall = (str(SCRIPT), "service", "uninstall", "--system", "--user", person.name)
    assert f"{UNIT}@{bob.name}.service need them" in machine.run(*uninstall).stdout
    machine.run("systemctl", "stop", f"{UNIT}@{bob.name}")
    machine.run(*uninstall)
    assert not list(Path(f"/proc/{machine.pid1}/root/etc/systemd/system").rglob("yolo-supervisor*"))


@pytest.mark.thorough
def test_inside_the_hardening_of_the_system_template_git_commits_and_its_forgotten_lock_is_put_aside(
    machine: Any, person: Person
) -> None:
    person.name_project()
    person.write(person.config, f'projects = ["~/shop"]\n{QUICK}[leases]\ninterval_s = 0.3\n')
    shop, unit = f"{person.home}/shop", f"{UNIT}@{person.name}"
    git = ["git", "-C", shop, "-c", "user.name=dev", "-c", "user.email=dev@example.com"]
    person.run(*git, "init", "-q")
    # Commands before the daemon run in the same sandbox.
    addition = f"[Service]\nExecStartPre={shutil.which('git')} {' '.join(git[1:])} commit -q --allow-empty -m inside\n"
    folder = Path(f"/proc/{machine.pid1}/root/etc/systemd/system/{unit}.service.d")
    folder.mkdir()
    (folder / "90-test.conf").write_text(addition)

    machine.run(str(SCRIPT), "service", "install", "--system", "--user", person.name)
    try:
        assert person.run(*git, "log", "--format=%s").stdout == "inside\n"
        seen = ".yolo-planning/.supervisor/seen-locks.json"
        person.run("sh", "-c", (
            f"cd {shop}; mkfifo ../input; exec 3<>../input; git update-index --stdin <&3 & git=$!\n"
            f"until grep -q '\"pid\": '$git {seen}; do sleep 0.1; done; kill -9 $git"
        ))  # fmt: skip
        lock = person.path("shop/.git/index.lock")
        quarantine = person.state("quarantine")
        wait_until(lambda: not lock.exists(), "the lock to be put aside")
        assert [path.name.startswith("index.lock-") for path in quarantine.iterdir()] == [True]
        person.run(*git, "commit", "-q", "--allow-empty", "-m", "outside")
    finally:
        shutil.rmtree(folder)
        machine.run(str(SCRIPT), "service", "uninstall", "--system", "--user", person.name)


# -- the files, without a systemd ------------------------------------------------------------------------------------


def exposure(unit: str) -> float:
    """The exposure of the unit by systemd's rating, from 0 to 10."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(SYSTEMD / unit)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    (line,) = (line for line in result.stdout.splitlines() if "Overall exposure level" in line)
    return float(line.split(":")[1].split()[0])


def test_the_system_template_is_hardly_exposed_and_the_user_unit_no_more_than_it_must_be() -> None:
    assert exposure("yolo-supervisor@.service") <= 1.6
    assert exposure("yolo-supervisor.service") <= 6.3


def test_the_launchd_agent_is_sound_and_its_agents_survive_it() -> None:
    path = SYSTEMD / f"{manager.LABEL}.plist"

    assert lint(path) == []

    plist = plistlib.loads(path.read_bytes())
    assert plist["AbandonProcessGroup"] is True
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["Umask"] == 0o077


def test_launchd_starts_the_daemon_with_a_bounded_log_and_the_previous_last_lines(
    tmp_path: Path,
) -> None:
    command = plistlib.loads((SYSTEMD / f"{manager.LABEL}.plist").read_bytes())["ProgramArguments"]
    home = tmp_path / "the home"
    logs, program = home / "Library" / "Logs", home / ".local" / "bin" / "yolo-supervisor"
    for folder in (logs, program.parent):
        folder.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$$" "$@"; echo "of run $RUN" >&2\n')
    program.chmod(0o755)

    for run in ("1", "2"):
        child = subprocess.Popen(command, env={"HOME": str(home), "RUN": run}, stdout=subprocess.PIPE, text=True)
        output = child.communicate(timeout=LIMIT_S)[0]

    assert output.split(maxsplit=1) == [str(child.pid), f"run --log-file {logs}/yolo-supervisor.log\n"]
    assert (logs / "yolo-supervisor.err").read_text() == "of run 2\n"
    assert (logs / "yolo-supervisor.err.1").read_text() == "of run 1\n"


def test_on_a_mac_install_writes_the_agent_and_hands_it_to_launchd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shadow: Callable[[str, str], None]
) -> None:
    calls = tmp_path / "calls"
    shadow("launchctl", f'echo "$@" >> {calls}; [ "$1" != print ] || [ "${{2#gui/}}" = "{os.getuid()}" ]')
    monkeypatch.setenv("HOME", str(tmp_path))
    launchd = manager.Launchd(os.environ)

    assert launchd.missing() is not None
    (tmp_path / ".local" / "bin").mkdir(parents=True)
    (tmp_path / ".local" / "bin" / "yolo-supervisor").symlink_to(sys.executable)
    assert launchd.missing() is None
    done = manager.put(launchd.files())
    launchd.enable()
    launchd.start(restart=True)

    (path,) = done
    assert path == tmp_path / "Library" / "LaunchAgents" / f"{manager.LABEL}.plist"
    assert path.read_bytes() == (SYSTEMD / path.name).read_bytes()
    assert f"bootstrap gui/{os.getuid()} {path}" in calls.read_text().splitlines()


def test_files_generated_by_each_installation_are_not_backed_up(tmp_path: Path) -> None:
    files = {tmp_path / "x.service.d" / "10-program.conf": manager._program_conf(("/a/yolo-supervisor",)).encode()}
    manager.put(files)
    others = dict.fromkeys(files, manager._program_conf(("/b/yolo-supervisor",)).encode())

    assert list(manager.put(others).values()) == ["replaced"]
    assert manager.take_away(list(files), files) == list(files)
    assert list(tmp_path.iterdir()) == []


def test_units_refused_by_the_manager_are_removed_again(
    claude_home: Path, monkeypatch: pytest.MonkeyPatch, shadow: Callable[[str, str], None]
) -> None:
    shadow("systemctl", "case $* in *enable*) echo no such unit >&2; exit 1;; *) echo 252;; esac")
    monkeypatch.setattr(manager.Systemd, "missing", lambda self: None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(claude_home.parent / "other"))
    mine = claude_home.parent / "other/systemd/user/yolo-tmux@.service"
    mine.parent.mkdir(parents=True)
    mine.write_bytes((SYSTEMD / mine.name).read_bytes())

    result = CliRunner().invoke(service.command, ["install"])

    assert result.exit_code == 1
    assert "no such unit" in result.stderr
    assert [path for path in mine.parents[2].rglob("*") if path.is_file()] == [mine]


@pytest.mark.parametrize("words", [["install"], ["status"], ["uninstall"], ["install", "--system"]])
def test_an_unknown_user_is_reported_in_one_sentence(
    claude_home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    users: dict[str, object] = {}
    no_user = {"getpwuid": lambda _: users["missing"]}
    monkeypatch.setattr(manager, "pwd", SimpleNamespace(**no_user))
    monkeypatch.setitem(sys.modules, "pwd", SimpleNamespace(**no_user))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)

    result = CliRunner().invoke(service.command, words)

    assert result.exit_code == 69
    assert result.stderr == (
        "yolo-supervisor: user id 54321 has no name on this machine: no service can be installed for it\n"
    )


def test_without_systemd_install_reports_that_and_what_to_do(cli: Cli, claude_home: Path) -> None:
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs here")

    result = cli("service", "install")

    assert (result.returncode, result.stdout) == (69, "")
    assert "yolo-supervisor run" in result.stderr
    assert not (claude_home.parent / ".config").exists()


def test_the_installation_contains_units_and_configuration(tmp_path: Path) -> None:
    hatchling = pytest.importorskip("hatchling.builders.wheel")

    (wheel,) = hatchling.WheelBuilder(str(SYSTEMD.parent)).build(directory=str(tmp_path), versions=["standard"])

    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", "from yolo_supervisor.service import manager; print(manager.shipped())"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    shipped = Path(result.stdout.strip())
    assert shipped.is_relative_to(tmp_path)
    assert {path.name: path.read_bytes() for path in shipped.iterdir()} == {
        path.name: path.read_bytes() for path in SYSTEMD.iterdir()
    }
    assert (shipped.parent / "config" / "supervisor.toml").exists()


def test_the_shell_completes_commands(cli: Cli) -> None:
    environment = {**os.environ, "COMP_WORDS": "yolo-supervisor serv", "COMP_CWORD": "1"}

    result = cli(env={**environment, "_YOLO_SUPERVISOR_COMPLETE": "bash_complete"})

    assert result.stdout.split() == ["plain,service"]


# -- trust ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o662])
def test_a_configuration_that_others_may_write_is_refused(cli: Cli, project: Path, mode: int) -> None:
    path = project / ".yolo-planning" / "supervisor.toml"
    path.write_text(QUICK)
    path.chmod(mode)

    result = cli("check")

    assert result.returncode == 78
    assert f"{path} can be written by all users" in result.stderr
    assert f"chmod go-w {path}" in result.stderr
    path.chmod(0o644)
    assert cli("check").returncode == 0


def test_a_configuration_in_a_folder_that_others_may_write_to_is_refused(cli: Cli, project: Path) -> None:
    folder = project / ".yolo-planning"
    (folder / "supervisor.toml").write_text(QUICK)
    folder.chmod(0o777)

    result = cli("check")

    assert (result.returncode, f"{folder} can be written by all users" in result.stderr) == (78, True)
    folder.chmod(0o1777)  # no user can replace another's file there
    assert cli("check").returncode == 0


def test_a_configuration_that_a_group_of_several_may_write_is_refused(cli: Cli, project: Path) -> None:
    path = project / ".yolo-planning" / "supervisor.toml"
    path.write_text(QUICK)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another group")
    os.chown(path, 0, 60_000)
    path.chmod(0o664)

    assert "can be written by its group, 60000" in cli("check").stderr


def test_a_state_folder_that_others_may_write_to_is_refused(team: Team) -> None:
    folder = Paths(team.project).folder
    folder.mkdir(mode=0o700, parents=True)
    folder.chmod(0o777)

    result = team.cli("run")

    assert result.returncode == 1
    assert f"{folder} can be written by all users" in result.stderr
    assert not (folder / "journal.jsonl").exists()
    folder.chmod(0o700)
    team.supervise()


def test_root_ignores_projects_of_others_unless_asked(cli: Cli, project: Path, daemon: StartDaemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is about root")
    os.chown(project, 60_000, 60_000)

    result = cli("run")

    assert (result.returncode, not Paths(project).folder.exists()) == (1, True)
    assert f"{project} belongs to user 60000" in result.stderr
    assert daemon("--allow-root").stop() == 0


def test_the_doctor_notices_a_daemon_of_another_version(cli: Cli, project: Path, children: Children) -> None:
    older = "import yolo_supervisor as y; y.__version__ = '0.0.1'; from yolo_supervisor.__main__ import main; main()"
    running = children.start(sys.executable, "-c", older, "run", cwd=project)

    wait_until(Paths(project).holder.exists, "the daemon to start")

    def found() -> list[Any]:
        findings = json.loads(cli("doctor", "--json").stdout)["findings"]
        return [each for each in findings if each["what"].startswith("the daemon is ")]

    (finding,) = wait_until(found, "the doctor to notice")
    running.terminate()
    running.wait()
    assert finding["what"] == f"the daemon is version 0.0.1, this program is version {__version__}"
    assert "start it again" in finding["do"]
