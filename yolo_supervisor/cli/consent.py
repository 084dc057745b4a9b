"""The consent of a person to something that cannot be taken back."""

from __future__ import annotations

import sys
from collections.abc import Collection

import click

from yolo_supervisor.cli.context import EX_NO, fail, printable
from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.processes import Processes

YES = click.option("--yes", is_flag=True, help="Do not ask for confirmation. Not accepted from an agent.")


def agent_above(processes: Processes, agents: Collection[ProcessId]) -> ProcessId | None:
    """The agent in whose process tree this command runs, or None."""
    ancestry = processes.ancestry()
    return next((agent for agent in agents if agent.pid in ancestry and processes.identify(agent.pid) == agent), None)


def refuse_agents(processes: Processes, agents: Collection[ProcessId]) -> None:
    """End the program if it runs in the process tree of an agent: only a person may decide this."""
    if (agent := agent_above(processes, agents)) is not None:
        fail(EX_NO, f"this command runs below the agent in process {agent.pid}, and needs a person: run it in a shell")


def confirm(processes: Processes, agents: Collection[ProcessId], question: str, yes: bool) -> None:
    """Ask a person on the terminal, unless ``--yes`` was given; end the program without consent.

    An agent cannot consent for a person: the command is refused in the process tree of one of ``agents``.
    """
    refuse_agents(processes, agents)
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for confirmation: add --yes")
    if not click.confirm(printable(question), err=True):
        fail(EX_NO, "nothing was done")
