"""``doctor``: problems of the installation and the state, and what to do about each."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from yolo_supervisor import __version__
from yolo_supervisor import config as configuration
from yolo_supervisor.actions.state import DropHealth, DropPids
from yolo_supervisor.cli.context import EX_NO, Shared, out, out_json, shared
from yolo_supervisor.cli.project_view import ProjectView
from yolo_supervisor.commits.backup import RESCUE_REFS
from yolo_supervisor.config import ConfigError
from yolo_supervisor.daemon.executor import apply_remediation
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.fs.trust import TooNew
from yolo_supervisor.models import Liveness
from yolo_supervisor.service.manager import Systemd, lingers, user_name
from yolo_supervisor.service.notify import endangered
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import Busy, folder_lock
from yolo_supervisor.store.state_folder import linked_elsewhere
from yolo_supervisor.system.death_watch import watchable
from yolo_supervisor.system.tmux import ask_now
from yolo_supervisor.watchers.agents import AgentsObservation


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``do`` says how to repair a problem, ``fixed`` that ``--fix`` has repaired it."""

    level: Literal["ok", "note", "problem"]
    what: str
    do: str = ""
    fixed: bool = False


@click.command()
@click.option("--fix", is_flag=True, help="Repair what is safe to repair.")
@shared
@click.pass_obj
def command(options: Shared, fix: bool) -> None:
    """Find problems of the installation and the state. Exit code 1 if there are any.

    \b
    Examples:
      yolo-supervisor doctor
      yolo-supervisor doctor --fix
    """
    project = options.project()
    findings = [*_installation(), *_kept_work(project)]
    try:
        config = configuration.load(project, options.config)
    except ConfigError as error:
        do = "correct the file; until then a running daemon keeps its old configuration"
        findings += [Finding("problem", mistake, do) for mistake in str(error).splitlines()]
    else:
        findings.append(Finding("ok", "the configuration is valid"))
        try:
            view = ProjectView(project, config)
            checks = (
                _store(view, fix), _service(view), _plugin(view, fix), _team(view), _given_up(view), _servers(view),
            )  # fmt: skip
            for checked in checks:
                findings += checked
        except TooNew as error:
            findings.append(Finding("problem", str(error)))
        except OSError as error:
            findings.append(
                Finding("problem", str(error), "if it belongs to another user (after sudo, for example): chown -R")
            )
    healthy = all(finding.level != "problem" or finding.fixed for finding in findings)
    if options.json:
        out_json({"version": 2, "project": str(project), "healthy": healthy, "findings": [asdict(f) for f in findings]})
    else:
        for finding in findings:
            sign = {"ok": "ok  ", "note": "note", "problem": "BAD "}[finding.level]
            out(f"{'ok  ' if finding.fixed else sign}  {finding.what}{' (fixed)' if finding.fixed else ''}")
            if finding.do and not finding.fixed:
                out(f"      {finding.do}")
    sys.exit(0 if healthy else EX_NO)


def _installation() -> Iterator[Finding]:
    for program, effect in (("tmux", "sessions cannot be watched"), ("git", "commits cannot be recovered")):
        if (path := shutil.which(program)) is None:
            yield Finding("problem", f"{program} is not installed: {effect}", f"install {program}")
        else:
            flag = "-V" if program == "tmux" else "--version"
            try:
                ended = subprocess.run(
                    [path, flag], stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                yield Finding("problem", f"{program} does not answer: {effect}", f"repair or replace {path}: {error}")
            else:
                yield Finding("ok", ended.stdout.decode(errors="replace").strip() or program)
    if sys.platform == "linux":
        yield Finding("ok", "deaths are detected at once (pidfd)")
    else:
        yield Finding("note", "this system has no pidfds: deaths are detected at the next tick")


def _kept_work(project: Path) -> Iterator[Finding]:
    """Say whether there are copies of changes: of commits, where they are not in the work tree, and of dead agents."""
    argv = ["git", "for-each-ref", "--format=%(refname)", RESCUE_REFS]
    try:
        ended = subprocess.run(argv, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    if refs := ended.stdout.decode(errors="replace").split():
        what = f"copies of uncommitted work of commits and dead agents: {len(refs)}, the newest is {refs[-1]}"
        do = "git diff HEAD REF shows one, git checkout REF -- FILE takes a file back, git update-ref -d REF removes it"
        yield Finding("note", what, do)


def _given_up(view: ProjectView) -> Iterator[Finding]:
    """Name the dead agents that are not started again until a person decides."""
    for ident, reason in view.given_up().items():
        do = f"yolo-supervisor agent start {ident} starts it now, agent reset {ident} forgets its starts"
        yield Finding("problem", f"{ident} is not started again: {reason}", do)


def _store(view: ProjectView, fix: bool) -> Iterator[Finding]:
    paths = view.store.paths
    folder = paths.folder
    if paths.planning.is_symlink():
        do = "supervise the project that it leads to, or replace it by a folder"
        yield Finding("problem", f"{paths.planning} is a symbolic link: the project is not supervised", do)
        return
    if (elsewhere := linked_elsewhere(view.store.disk, paths)) is not None:
        do = "use the same HOME and XDG_STATE_HOME, or begin with a new folder: yolo-supervisor state adopt --new"
        yield Finding("problem", f"{paths.link} leads to {elsewhere}, which is not in your state directory", do)
        return
    if not folder.exists():
        yield Finding("note", f"{view.project} has never been supervised", "yolo-supervisor run")
        return
    mode = stat.S_IMODE(folder.lstat().st_mode)
    if folder.is_symlink():
        yield Finding("problem", f"{folder} is a symbolic link", "replace it by a folder")
        return
    if mode & 0o077:
        if fix:
            folder.chmod(0o700)
        yield Finding("problem", f"other users can read {folder} (mode {mode:o})", f"chmod 700 {folder}", fix)
    journal = view.store.journal
    if journal.unreadable:
        what = f"the journal cannot be read: {journal.unreadable}"
        yield Finding("problem", what, "correct or remove it: without a journal nothing is recovered")
        return
    if journal.path.exists() and not os.access(journal.path, os.W_OK):
        yield Finding(
            "problem", f"{journal.path} cannot be written", "without a journal nothing is recovered: chmod u+w"
        )
    damaged = len(journal.damage)
    if damaged:
        where = "; ".join(f"{damage.what} (at byte {damage.offset})" for damage in journal.damage[:5])
        do = "the other lines are intact; the next start closes this segment and begins another"
        yield Finding("problem", f"{journal.path} is damaged in {damaged} places: {where}", do)
    observation = view.state().observe(view.now, 0.0)
    for broken in observation.broken:
        yield Finding("problem", f"{broken.key}: {broken.flaw.text}", "yolo-supervisor state recover")
    for older in observation.undecided:
        what = f"an older state folder is not in use: {older.folder}"
        yield Finding("problem", what, "yolo-supervisor state adopt, or state adopt --dismiss")
    for unreadable in observation.unreadable:
        yield Finding("problem", f"{unreadable.key} cannot be read: {unreadable.text}", "repair or remove it")
    holder = view.holder()
    interrupted = len(journal.pending) if holder is None else 0
    if interrupted:
        if fix:
            view.store.open()
            view.store.recover()
        yield Finding("problem", f"{interrupted} changes were interrupted by a crash", "run the daemon", fix)
    if not damaged and not interrupted:
        yield Finding("ok", f"the journal is intact ({journal.seq} lines)")
    if holder and (silent_s := view.silent_s()) is not None:
        pid = holder.process.pid
        what = f"the daemon (process {pid}) has reported nothing for {silent_s:.0f} s: it hangs or is stopped"
        yield Finding("problem", what, "end it and start it again: what it was doing is finished then")
    elif holder:
        yield Finding("ok", f"supervised by process {holder.process.pid} since {holder.started_at} ({holder.mode})")
    else:
        yield Finding("note", "no daemon is running here", "yolo-supervisor run")


def _service(view: ProjectView) -> Iterator[Finding]:
    """Check the daemon as a service, and what its end, or the user's logout, would do."""
    restart = "stop it and start it again"
    holder = view.holder()
    if sys.platform == "linux":
        systemd = Systemd()
        unit = systemd.folder / systemd.unit
        if os.path.isdir("/run/systemd/system") and unit.exists():
            restart = f"{systemd.command} restart yolo-supervisor"
            state = systemd.state()
            if os.path.realpath(unit) == os.devnull:
                yield Finding(
                    "note", "the service is masked: it cannot start", f"{systemd.command} unmask yolo-supervisor"
                )
            elif not state.active:
                yield Finding("problem", f"the service is installed, but is not running: {state.text}", restart)
            yield Finding("ok", f"the service's log: {systemd.log(configuration.load().log.file)}")
            yield _network(systemd)
            if (me := user_name()) is not None and not lingers(me):
                what = "the service ends when you log out, and so does a tmux that a service started"
                yield Finding("note", what, "loginctl enable-linger")
        elif os.path.isdir("/run/systemd/system") and (me := user_name()) and Systemd(me).state().enabled:
            yield _network(Systemd(me))
    if holder is None:
        return
    if holder.program != __version__:
        theirs = f"version {holder.program}" if holder.program else "an older version"
        yield Finding("problem", f"the daemon is {theirs}, this program is version {__version__}", restart)
    if _at_fd_limit(holder.process.pid):
        what = "the daemon has no file descriptors for more agents: their deaths are detected at the next tick only"
        yield Finding("note", what, "raise LimitNOFILE= of the service, or ulimit -Hn, and start it again")
    agents = {process.pid for process in view.scanner.agents}
    for pid, what in endangered(view.processes.backend, holder.process.pid, agents):
        yield Finding(
            "problem", f"{what} {pid} runs in the supervisor's cgroup: it would be killed with the service",
            "start tmux in a login session or by yolo-tmux@.service; until it is moved, do not stop the service",
        )  # fmt: skip


def _network(systemd: Systemd) -> Finding:
    may = f"may use the network: {systemd.network_file}" if systemd.network else "may not use the network"
    return Finding("ok", f"the service {may}")


def _at_fd_limit(daemon: int) -> bool:
    """Whether the daemon has no descriptors left to watch more agents with."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        limit, _ = resource.prlimit(daemon, resource.RLIMIT_NOFILE)
        return len(os.listdir(f"/proc/{daemon}/fd")) >= watchable(limit)
    return False


def _plugin(view: ProjectView, fix: bool) -> Iterator[Finding]:
    planning = view.store.paths.planning
    if not planning.is_dir():
        yield Finding("note", f"{view.project} does not use the YOLO plugin (no {plugin.PLANNING})")
        return
    for lock in (plugin_agents.PID_LOCK, planning / plugin.ACTIVE_AGENT_LOCK):
        try:
            age_s = time.time() - lock.lstat().st_mtime
        except FileNotFoundError:
            continue
        if age_s > plugin_agents.PID_LOCK_STALE_S:
            fixed = fix and _break_lock(lock)
            yield Finding(
                "problem", f"{lock} belongs to a hook that was killed {age_s:.0f} s ago, and blocks every registration",
                f"rmdir {lock}", fixed,
            )  # fmt: skip
    config = read_or_none(planning / plugin.CONFIG) or b""
    yield from _flags_off(config)
    switches = plugin_config.switches(config)
    for (flag, needed), effect in plugin_config.NEEDS.items():
        if switches.get(flag) and not switches.get(needed):
            what = f"{flag} is on while {needed} is off: {effect}"
            yield Finding("note", what, f"set {needed} to true in config.json")
    entries = (read_or_none(planning / plugin.AGENT_PIDS) or b"").split()
    impossible = [e for e in entries if not (e.isdigit() and len(e) < 12 and plugin_agents.is_pid(int(e)))]
    if impossible:
        shown = ", ".join(entry.decode("utf-8", "replace")[:20] for entry in impossible[:5])
        yield Finding("problem", f".agent-pids contains entries that are no pids ({shown}): other programs may signal "
                      "the wrong processes", f"remove these lines from {planning / '.agent-pids'}")  # fmt: skip
    observation = view.agents.observe()
    if observation.dangling:
        pids = ", ".join(str(pid) for pid in sorted(observation.dangling))
        fixed = fix and _strike(view, observation)
        what = f"the plugin's files name pids that no process has here ({pids})"
        yield Finding("problem", what, "if no agent of a container has them: yolo-supervisor doctor --fix", fixed)
    yield from _watchdog(view)
    if (planning / ".yolo-session").exists():
        age_h = (time.time() - (planning / ".yolo-session").stat().st_mtime) / 3600
        if age_h > 24:
            yield Finding(
                "note", f".yolo-session is {age_h:.0f} hours old; the plugin never removes it, and ignores it"
            )


def _flags_off(config: bytes) -> Iterator[Finding]:
    """List the plugin's flags that are off, with the consequence of each that concerns the supervisor."""
    for flag in plugin_config.off(config, *plugin_config.IF_OFF):
        yield Finding("note", f"the plugin's flag {flag} is off: {plugin_config.IF_OFF[flag]}")
    switches = plugin_config.switches(config)
    others = [flag for flag, on in switches.items() if plugin_config.is_flag(flag) and not on]
    if others := sorted(set(others) - plugin_config.IF_OFF.keys()):
        yield Finding("ok", f"other flags of the plugin that are off, which changes nothing here: {', '.join(others)}")


def _watchdog(view: ProjectView) -> Iterator[Finding]:
    """Say who acts on detached sessions, if the plugin has started its watchdog."""
    watchdog = view.sessions().watchdog()
    if watchdog is None:
        return
    named = f"process {watchdog.pid} in .watchdog-pid"
    if watchdog.liveness is Liveness.ALIVE:
        yield Finding("note", f"the plugin's watchdog runs ({named}): detached sessions are left to it")
    elif watchdog.liveness is Liveness.DEAD:
        yield Finding("note", f"the plugin's watchdog is dead ({named}): detached sessions are the supervisor's")
    else:
        what = f"whether the plugin's watchdog runs is unknown ({named}, which cannot be seen from here)"
        yield Finding("note", f"{what}: detached sessions are the supervisor's")


def _team(view: ProjectView) -> Iterator[Finding]:
    agents = view.agents_json()
    states = [agent["state"] for agent in agents]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("alive", "dead", "unknown") if s in states)
    yield Finding("ok" if agents else "note", f"agents: {counts or 'none'}")
    if "dead" in states and view.holder() is None:
        yield Finding(
            "problem",
            "dead agents still hold resources",
            "see yolo-supervisor check; yolo-supervisor run recovers them",
        )


def _servers(view: ProjectView) -> Iterator[Finding]:
    """Check that the tmux servers of agents answer: otherwise nothing is known of their sessions."""
    placed = view.sessions().placed()
    servers = {(agent.pane.socket, agent.pane.server_pid) for agent in placed if agent.pane}
    for socket, pid in sorted(servers):
        if ask_now(socket) is not None:
            continue
        if view.processes.identify(pid) is None:
            what, do = (
                f"the tmux server {pid} is gone, but agents that lived in it still run",
                "end them, or do nothing",
            )
        elif not os.path.exists(socket):
            what = f"the tmux server {pid} cannot be reached: its socket {socket} is gone"
            do = f"kill -USR1 {pid}    # it creates the socket again, if the folder exists"
        else:
            what, do = (
                f"the tmux server {pid} does not answer on {socket}",
                "it may be stopped or hang: look at the process",
            )
        yield Finding("problem", f"{what}: whether a person is attached there is unknown", do)


def _break_lock(lock: Path) -> bool:
    """Remove a stale lock as its next holder would."""
    try:
        with folder_lock(Disk(), lock, plugin_agents.PID_LOCK_STALE_S):
            return True
    except (Busy, OSError):
        return False


def _strike(view: ProjectView, observation: AgentsObservation) -> bool:
    """Remove the pids that no process has here from the plugin's files.

    Only a person can decide that: they may be those of agents in a container.
    """
    pids, reason = observation.dangling, "no process has it here, and a person asked for it"
    view.store.open()
    for path in observation.dangling_files:
        if path.name == plugin.AGENT_PIDS:
            evidence = {"pids": sorted(pids)}
            apply_remediation(
                (DropPids(key=path.name, path=path, pids=pids, reason=reason, evidence=evidence),), view.store, "cli"
            )
            continue
        health = plugin_agents.health(read_or_none(path) or b"", path.stem)
        if health is not None and health.pid in pids:
            key = f"{plugin.AGENT_HEALTH}/{path.name}"
            apply_remediation((DropHealth(key=key, path=path, pid=health.pid, reason=reason),), view.store, "cli")
    return not view.agents.observe().dangling
