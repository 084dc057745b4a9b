"""The consent of a person to something that cannot be taken back."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from yolo_supervisor.cli.context import EX_NO, fail, printable
from yolo_supervisor.formats.claude import CLIENT_VARIABLES
from yolo_supervisor.formats.own import load_descents, load_trees
from yolo_supervisor.fs.read import LOG_LIMIT, read_or_none
from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.processes import Processes

if TYPE_CHECKING:
    from yolo_supervisor.cli.project_view import ProjectView

YES = click.option("--yes", is_flag=True, help="Do not ask for confirmation. Not accepted from an agent.")


def agent_above(view: ProjectView) -> int | None:
    """The pid of the agent from which this command descends, or None.

    Its tree shows that. A process that has left the tree (its parent has ended) is known by what the daemon has seen,
    and by the client's variable in its environment. On a terminal these do not count: a person may sit in a tmux server
    that an agent has started.
    """
    processes, agents = view.processes, view.agent_processes()
    ancestry = [process for pid in processes.ancestry() if (process := processes.identify(pid)) is not None]
    if (agent := next((process for process in ancestry if process in agents), None)) is not None:
        return agent.pid
    if _has_terminal(processes):
        return None
    seen = read_or_none(view.store.paths.trees, LOG_LIMIT) or b""
    descendants = {agent: {process for process, _ in tree} for agent, tree in load_trees(seen).items()}
    for agent, descent in load_descents(seen).items():
        descendants.setdefault(agent, set()).update(descent.orphans)
    for agent, below in descendants.items():
        if not below.isdisjoint(ancestry):
            return agent.pid
    return next((pid for process in ancestry if (pid := _named_client(processes, process, agents)) is not None), None)


def _has_terminal(processes: Processes) -> bool:
    """Whether this command has a controlling terminal."""
    try:
        facts = processes.backend.facts(os.getpid())
    except OSError:
        return False
    return facts is not None and facts.terminal != 0


def _named_client(processes: Processes, process: ProcessId, agents: Collection[ProcessId]) -> int | None:
    """The agent whose client has started the process, by the environment that it was started with."""
    try:
        pid = processes.backend.environment(process.pid).get(CLIENT_VARIABLES[0])
    except OSError:
        return None
    return next((agent.pid for agent in agents if str(agent.pid) == pid and agent.started <= process.started), None)


def refuse_agents(view: ProjectView) -> None:
    """End the program if an agent has started it: only a person may decide this."""
    if (pid := agent_above(view)) is not None:
        fail(EX_NO, f"this command runs below the agent in process {pid}, and needs a person: run it in a shell")


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
