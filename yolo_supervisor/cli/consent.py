"""The consent of a person to something that cannot be taken back.

An agent runs as the same user, so no check holds against one that is determined. These hold against what agents do: a
command in their tree, one that has left it, a terminal or a tmux session that no person looks at.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from yolo_supervisor.cli.context import EX_NO, fail, printable
from yolo_supervisor.formats.claude import CLIENT_VARIABLES
from yolo_supervisor.formats.own import load_descents, load_trees
from yolo_supervisor.fs.read import LOG_LIMIT, read_or_none
from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import ProcessFacts
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import ask_now, pane_of

if TYPE_CHECKING:
    from yolo_supervisor.cli.project_view import ProjectView

YES = click.option("--yes", is_flag=True, help="Do not ask for confirmation. A person still has to run it.")

POPUP = "popup"
"""The pane of a command in a popup of tmux, which names none."""


@dataclass(frozen=True, slots=True)
class _Ancestry:
    """This command and its ancestors, the nearest first, up to what hosts their session."""

    processes: tuple[ProcessId, ...]
    host: ProcessFacts | None
    """A tmux server, or the client's own daemon; None if there is none."""

    @classmethod
    def of(cls, processes: Processes) -> _Ancestry:
        found: list[ProcessId] = []
        pid = os.getpid()
        while pid > 1:
            try:
                facts = processes.backend.facts(pid)
            except OSError:
                break
            if facts is None:
                break
            if processes.hosts_sessions(facts):
                return cls(tuple(found), facts)
            found.append(ProcessId(pid, facts.started, processes.boot))
            pid = facts.parent
        return cls(tuple(found), None)


def agent_above(view: ProjectView) -> int | None:
    """The pid of the agent that has started this command, or None.

    Its tree shows that. A process that has left the tree (its parent has ended) is known by what the daemon has seen,
    and by the client's variable in its environment. A person may sit in a tmux server that an
    agent has started: everything below it inherits the variable, which does not count there.
    """
    processes, agents, ancestry = view.processes, view.agent_processes(), _Ancestry.of(view.processes)
    above = [process for pid in processes.ancestry() if (process := processes.identify(pid)) is not None]
    if (agent := next((process for process in above if process in agents), None)) is not None:
        return agent.pid
    seen = read_or_none(view.store.paths.trees, LOG_LIMIT) or b""
    descendants = {agent: {process for process, _ in tree} for agent, tree in load_trees(seen).items()}
    for agent, descent in load_descents(seen).items():
        descendants.setdefault(agent, set()).update(descent.orphans)
    for agent, below in descendants.items():
        if not below.isdisjoint(ancestry.processes):
            return agent.pid
    if ancestry.host is not None:
        return None
    named = (_named_client(processes, process, agents) for process in ancestry.processes)
    return next((pid for pid in named if pid is not None), None)


def _named_client(processes: Processes, process: ProcessId, agents: Collection[ProcessId]) -> int | None:
    """The agent whose client has started the process, by the environment that it was started with."""
    try:
        pid = processes.backend.environment(process.pid).get(CLIENT_VARIABLES[0])
    except OSError:
        return None
    return next((agent.pid for agent in agents if str(agent.pid) == pid and agent.started <= process.started), None)


def refuse_agents(view: ProjectView) -> None:
    """End the program unless a person decides this, at a terminal or by a script, and no agent."""
    if (pid := agent_above(view)) is not None:
        fail(EX_NO, f"this command runs below the agent in process {pid}, and needs a person: run it in a shell")
    if not _in_foreground():
        if not _comes_from_before(view):
            needs = "needs a person at a terminal (ssh -t), or a script that was started before all agents"
            fail(EX_NO, f"this command {needs}: see docs/trust.md")
    elif not _is_attended(view.processes):
        fail(EX_NO, "this command needs a person, and none is attached to this tmux session: attach to it")
    elif (pid := _agent_beside(view)) is not None and not _comes_from_before(view):
        fail(EX_NO, f"this command may be of the agent in process {pid}, whose terminal it uses: run it in a shell")


def _agent_beside(view: ProjectView) -> int | None:
    """The pid of an agent in the process group of this command. A shell makes a group for each command."""
    for agent in view.agent_processes():
        with contextlib.suppress(OSError):
            if os.getpgid(agent.pid) == os.getpgrp():
                return agent.pid
    return None


def _comes_from_before(view: ProjectView) -> bool:
    """Whether this command descends from a process that is older than every agent: then it descends from no agent.

    An ancestor may have adopted what it has not started, and an old daemon of root's (cron, sshd) starts what it is
    asked to. So only those ancestors count that adopt nothing, and are the user's.
    """
    processes = view.processes
    adopter, agents = _adopter(), [agent for agent in view.agent_processes() if _may_be_ours(processes, agent)]
    for process in _Ancestry.of(processes).processes:
        if process.pid == adopter:
            break
        if _may_be_ours(processes, process) and all(process.started < agent.started for agent in agents):
            return True
    return False


def _may_be_ours(processes: Processes, process: ProcessId) -> bool:
    """Whether the process is of this user; True if the kernel does not say."""
    try:
        return processes.backend.owner(process.pid) == os.geteuid()
    except OSError:
        return True


def _adopter() -> int:
    """The process that adopts the descendants of this one whose parents have ended: init, or a subreaper."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:  # a descendant without a parent tells which
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.001)
            os.write(writer, str(os.getppid()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader, "rb") as answer:
        return int(answer.read() or 1)


def _in_foreground() -> bool:
    """Whether this command is in the foreground of its terminal, where a person can type."""
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False


def _is_attended(processes: Processes) -> bool:
    """Whether a person is attached to the tmux session that this command runs in; True outside of our tmux servers."""
    ancestry = _Ancestry.of(processes)
    if ancestry.host is None:
        return True
    try:
        if processes.backend.owner(ancestry.host.pid) != os.geteuid():
            return True  # another user's, so none of our agents has started it
        environment = processes.backend.environment(ancestry.processes[-1].pid)  # as tmux has made it
    except (OSError, IndexError):
        return False
    pane = pane_of({"TMUX_PANE": POPUP, **environment})
    server = ask_now(pane.socket) if pane is not None else None
    if pane is None or server is None or server.pid != ancestry.host.pid:
        return False
    if pane.pane == POPUP:
        return any(server.attached.values())  # a client shows it
    shown = server.panes.get(pane.pane)
    return shown is not None and any(server.attached.get(session, 0) for session in shown.sessions)


def confirm(view: ProjectView, question: str, yes: bool) -> None:
    """Ask a person on the terminal, unless ``--yes`` was given; end the program without consent.

    An agent cannot consent for a person: the command is refused if an agent has started it.
    """
    refuse_agents(view)
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for confirmation: add --yes")
    if not click.confirm(printable(question), err=True):
        fail(EX_NO, "nothing was done")
