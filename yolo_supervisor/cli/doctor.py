"""``doctor``: what is wrong with the installation and the state, and what to do about it."""

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
from yolo_supervisor.config import ConfigError
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.fs.trust import TooNew
from yolo_supervisor.service.manager import Systemd, lingers, user_name
from yolo_supervisor.service.notify import endangered
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import Busy, folder_lock
from yolo_supervisor.system.death_watch import watchable
from yolo_supervisor.system.tmux import ask_now


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``do`` says how a problem is mended; ``fixed`` that it has been."""

    level: Literal["well", "note", "problem"]
    what: str
    do: str = ""
    fixed: bool = False


@click.command()
@click.option("--fix", is_flag=True, help="Mend what is safe to mend.")
@shared
@click.pass_obj
def command(options: Shared, fix: bool) -> None:
    """Find what is wrong with the installation and the state. Exit code 1 if something is.

    \b
    Examples:
      yolo-supervisor doctor
      yolo-supervisor doctor --fix
    """
    project = options.project()
    findings = list(_installation())
    try:
        config = configuration.load(project, options.config)
    except ConfigError as error:
        do = "mend the file; until then a running daemon keeps its old one"
        findings += [Finding("problem", mistake, do) for mistake in str(error).splitlines()]
    else:
        findings.append(Finding("well", "the configuration is valid"))
        try:
            view = ProjectView(project, config)
            for found in (_store(view, fix), _service(view), _plugin(view, fix), _team(view), _servers(view)):
                findings += found
        except TooNew as error:
            findings.append(Finding("problem", str(error)))
        except OSError as error:
            findings.append(Finding("problem", str(error), "if it is another user's (sudo?), give it back: chown -R"))
    sound = all(finding.level != "problem" or finding.fixed for finding in findings)
    if options.json:
        out_json(
            {"version": 2, "project": str(project), "healthy": sound, "findings": [asdict(each) for each in findings]}
        )
    else:
        for each in findings:
            sign = {"well": "ok  ", "note": "note", "problem": "BAD "}[each.level]
            out(f"{'ok  ' if each.fixed else sign}  {each.what}{' (mended)' if each.fixed else ''}")
            if each.do and not each.fixed:
                out(f"      {each.do}")
    sys.exit(0 if sound else EX_NO)


def _installation() -> Iterator[Finding]:
    for program, why in (("tmux", "sessions cannot be watched"), ("git", "commits cannot be watched")):
        if (path := shutil.which(program)) is None:
            yield Finding("problem", f"{program} is not installed: {why}", f"install {program}")
        else:
            flag = "-V" if program == "tmux" else "--version"
            try:
                answer = subprocess.run(
                    [path, flag], stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                yield Finding("problem", f"{program} does not answer: {why}", f"mend or replace {path}: {error}")
            else:
                yield Finding("well", answer.stdout.decode(errors="replace").strip() or program)
    if sys.platform == "linux":
        yield Finding("well", "deaths are seen at once (pidfd)")
    else:
        yield Finding("note", "there are no pidfds here: deaths are seen at the next look")


def _store(view: ProjectView, fix: bool) -> Iterator[Finding]:
    folder = view.store.paths.folder
    if not folder.exists():
        yield Finding("note", f"{view.project} was never supervised", "yolo-supervisor run")
        return
    mode = stat.S_IMODE(folder.lstat().st_mode)
    if folder.is_symlink():
        yield Finding("problem", f"{folder} is a symbolic link", "replace it by a folder of your own")
        return
    if mode & 0o077:
        if fix:
            folder.chmod(0o700)
        yield Finding("problem", f"{folder} can be entered by others (mode {mode:o})", f"chmod 700 {folder}", fix)
    journal = view.store.journal
    if journal.unreadable:
        what = f"the journal cannot be read: {journal.unreadable}"
        yield Finding("problem", what, "put it right, or away: nothing is healed without one")
        return
    if journal.path.exists() and not os.access(journal.path, os.W_OK):
        yield Finding("problem", f"{journal.path} cannot be written", "nothing is healed without a journal")
    damaged = len(journal.damage)
    if damaged:
        where = "; ".join(f"{each.what} (at byte {each.offset})" for each in journal.damage[:5])
        do = "the rest is sound; the next start closes this segment and goes on in a new one"
        yield Finding("problem", f"{journal.path} is damaged in {damaged} places: {where}", do)
    observation = view.state().observe(view.now, 0.0)
    for each in observation.broken:
        yield Finding("problem", f"{each.key}: {each.flaw.text}", "yolo-supervisor state recover")
    for unreadable in observation.unreadable:
        yield Finding("problem", f"{unreadable.key} cannot be read: {unreadable.text}", "mend it or put it away")
    holder = view.holder()
    cut_off = len(journal.pending) if holder is None else 0
    if cut_off:
        if fix:
            view.store.open()
            view.store.recover()
        yield Finding("problem", f"{cut_off} changes were cut off by a crash", "run the daemon", fix)
    if not damaged and not cut_off:
        yield Finding("well", f"the journal is sound ({journal.seq} lines)")
    if holder and (silent_s := view.silent_s()) is not None:
        what = (
            f"the daemon (process {holder.process.pid}) has said nothing for {silent_s:.0f} s: it hangs, or is stopped"
        )
        yield Finding("problem", what, "end it, and start it again: whatever it was at is finished then")
    elif holder:
        yield Finding("well", f"supervised by process {holder.process.pid} since {holder.started_at} ({holder.mode})")
    else:
        yield Finding("note", "no daemon is running here", "yolo-supervisor run")


def _service(view: ProjectView) -> Iterator[Finding]:
    """The daemon under the service manager: what its end, or the user's logout, would do."""
    again = "stop it, and start it again"
    holder = view.holder()
    if sys.platform == "linux":
        systemd = Systemd()
        unit = systemd.folder / systemd.unit
        if os.path.isdir("/run/systemd/system") and unit.exists():
            again = f"{systemd.command} restart yolo-supervisor"
            state = systemd.state()
            if os.path.realpath(unit) == os.devnull:
                yield Finding(
                    "note", "the service is masked: it cannot start", f"{systemd.command} unmask yolo-supervisor"
                )
            elif not state.active:
                yield Finding("problem", f"the service is installed, and is not running: {state.text}", again)
            yield Finding("well", f"the service's log: {systemd.log(configuration.load().log.file)}")
            if (me := user_name()) is not None and not lingers(me):
                why = "the service ends when you log out, and tmux with it if a service has started it"
                yield Finding("note", why, "loginctl enable-linger")
    if holder is None:
        return
    if holder.program != __version__:
        theirs = holder.program or "an older one"
        yield Finding("problem", f"the daemon is version {theirs}, this program is {__version__}", again)
    if _crowded(holder.process.pid):
        why = "the daemon has no file descriptors to spare for more agents: their deaths are seen at a look only"
        yield Finding("note", why, "raise LimitNOFILE= of the service, or ulimit -Hn, and start it again")
    agents = {process.pid for process in view.scanner.agents}
    for pid, what in endangered(view.processes.backend, holder.process.pid, agents):
        yield Finding(
            "problem", f"{what} {pid} was started inside the supervisor's own service: it would be killed with that",
            "start tmux in a login, or by yolo-tmux@.service; until it has moved, do not stop the service",
        )  # fmt: skip


def _crowded(daemon: int) -> bool:
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        limit, _ = resource.prlimit(daemon, resource.RLIMIT_NOFILE)
        return len(os.listdir(f"/proc/{daemon}/fd")) >= watchable(limit)
    return False


def _plugin(view: ProjectView, fix: bool) -> Iterator[Finding]:
    planning = view.store.paths.planning
    if not planning.is_dir():
        yield Finding("note", f"{view.project} is not used with the YOLO plugin (no {plugin.PLANNING})")
        return
    for lock in (plugin_agents.PID_LOCK, planning / ".active-agent-count.lock"):
        try:
            age_s = time.time() - lock.lstat().st_mtime
        except FileNotFoundError:
            continue
        if age_s > plugin_agents.PID_LOCK_STALE_S:
            fixed = fix and _break(lock)
            yield Finding(
                "problem", f"{lock} was left by a hook that was killed {age_s:.0f} s ago: it blocks every registration",
                f"rmdir {lock}", fixed,
            )  # fmt: skip
    wishes = plugin_config.wishes(read_or_none(planning / "config.json") or b"")
    for (wish, needed), vain in plugin_config.IN_VAIN.items():
        if wishes.get(wish) and not wishes.get(needed):
            yield Finding("note", f"{wish} is on while {needed} is off: {vain}", f"switch {needed} on in config.json")
    words = (read_or_none(planning / ".agent-pids") or b"").split()
    impossible = [w for w in words if not (w.isdigit() and len(w) < 12 and plugin_agents.is_pid(int(w)))]
    if impossible:
        shown = ", ".join(word.decode("utf-8", "replace")[:20] for word in impossible[:5])
        yield Finding("problem", f".agent-pids holds what is no pid ({shown}): other programs may signal the wrong "
                      "processes", f"remove these lines from {planning / '.agent-pids'}")  # fmt: skip
    observation = view.agents.observe(view.now)
    if observation.dangling:
        fixed = fix and _repair(view)
        pids = ", ".join(str(pid) for pid in sorted(observation.dangling))
        yield Finding("problem", f"the plugin's files name processes that are gone ({pids})", "run the daemon", fixed)
    watchdog = view.sessions().watchdog()
    if watchdog:
        yield Finding("note", f"the plugin's own watchdog is at work (process {watchdog}): detached sessions are its")
    if (planning / ".yolo-session").exists():
        age_h = (time.time() - (planning / ".yolo-session").stat().st_mtime) / 3600
        if age_h > 24:
            yield Finding(
                "note", f".yolo-session is {age_h:.0f} hours old: the plugin never removes it, and ignores it"
            )


def _team(view: ProjectView) -> Iterator[Finding]:
    agents = view.agents_json()
    states = [agent["state"] for agent in agents]
    told = ", ".join(f"{states.count(s)} {s}" for s in ("alive", "dead", "unknown") if s in states)
    yield Finding("well" if agents else "note", f"agents: {told or 'none are known'}")
    if "dead" in states and view.holder() is None:
        yield Finding(
            "problem", "dead agents have left something behind", "yolo-supervisor check shows what; run heals it"
        )


def _servers(view: ProjectView) -> Iterator[Finding]:
    """The tmux servers that agents live in, where they cannot be asked: of their sessions nothing is known then."""
    placed = view.sessions().placed(view.now)
    servers = {(agent.pane.socket, agent.pane.server_pid) for agent in placed if agent.pane}
    for socket, pid in sorted(servers):
        if ask_now(socket) is not None:
            continue
        if view.processes.identify(pid) is None:
            what, do = f"the tmux server {pid} is gone, and agents that lived in it go on", "end them, or leave them be"
        elif not os.path.exists(socket):
            what = f"the tmux server {pid} cannot be asked: its socket {socket} is gone"
            do = f"kill -USR1 {pid}    # it makes the socket anew, if the folder is there"
        else:
            what, do = f"the tmux server {pid} does not answer on {socket}", "is it stopped, or does it hang?"
        yield Finding("problem", f"{what}: whether somebody is attached there is unknown", do)


def _break(lock: Path) -> bool:
    """Remove an abandoned lock the way its next holder would."""
    try:
        with folder_lock(Disk(), lock, plugin_agents.PID_LOCK_STALE_S):
            return True
    except (Busy, OSError):
        return False


def _repair(view: ProjectView) -> bool:
    from yolo_supervisor.watchers.agents import decide

    view.store.open()
    observation = view.agents.observe(view.now)
    remediations = decide(
        observation, view.store.paths.agents, view.config.processes.grace_s, view.config.agents.mass_death_min
    )
    for remediation in remediations:
        for action in remediation:
            if isinstance(action, DropPids | DropHealth) and len(remediation) == 1:
                view.store.commit(action, "cli")
    return not view.agents.observe(view.now).dangling
