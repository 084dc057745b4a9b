"""tmux sessions, and the server, that go away."""

from __future__ import annotations

import os
import random
import signal

from yolo_supervisor.drill.sandbox import Scene
from yolo_supervisor.drill.trial import Fault, Watch, agents_gone


def session_killed(scene: Scene, dice: random.Random) -> Watch:
    """A tmux session is closed with an agent in it, another goes on."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session), scene.agent(other)
    session.kill()
    return agents_gone(scene, [victim], [bystander])


def session_detached(scene: Scene, dice: random.Random) -> Watch:
    """The last person leaves a session; a session that nobody ever looked at goes on."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session), scene.agent(other)
    scene.attach(session)
    scene.detach()
    return agents_gone(scene, [victim], [bystander], told=("terminated", "died"))


def tmux_server_killed(scene: Scene, dice: random.Random) -> Watch:
    """The tmux server itself is killed, and with it every terminal."""
    session = scene.session()
    victims = [scene.agent(session) for _ in range(2)]
    os.kill(scene.server_pid(), signal.SIGKILL)
    return agents_gone(scene, victims)


FAULTS: tuple[Fault, ...] = (
    session_killed,
    session_detached,
    tmux_server_killed,
)
