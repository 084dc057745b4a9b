"""tmux sessions that are closed or detached, and a tmux server that is killed."""

from __future__ import annotations

import os
import random
import signal

from yolo_supervisor.drill.sandbox import Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault, agents_gone


def session_killed(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A tmux session with an agent is closed; another session is not affected."""
    session, other = sandbox.session(), sandbox.session()
    victim, bystander = sandbox.agent(session), sandbox.agent(other)
    session.kill()
    return agents_gone(sandbox, [victim], [bystander])


def session_detached(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """The last person detaches from a session; a session that never had one is not affected."""
    session, other = sandbox.session(), sandbox.session()
    victim, bystander = sandbox.agent(session), sandbox.agent(other)
    sandbox.attach(session)
    sandbox.detach()
    return agents_gone(sandbox, [victim], [bystander], verbs=("terminated", "died"))


def tmux_server_killed(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """The tmux server is killed, and every terminal with it."""
    session = sandbox.session()
    victims = [sandbox.agent(session) for _ in range(2)]
    os.kill(sandbox.tmux_server_pid(), signal.SIGKILL)
    return agents_gone(sandbox, victims)


FAULTS: tuple[Fault, ...] = (
    session_killed,
    session_detached,
    tmux_server_killed,
)
