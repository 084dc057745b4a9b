"""What happens to the supervisor itself, and to its clock."""

from __future__ import annotations

import contextlib
import random
import signal
import time

from yolo_supervisor.drill.sandbox import Actor, Scene
from yolo_supervisor.drill.trial import Fault, Watch, agents_gone, send
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.store.paths import Paths


def _team(scene: Scene, dice: random.Random) -> tuple[Actor, Actor, Actor]:
    """Two to whom something will happen, and one to whom nothing may."""
    session = scene.session()
    actors = [scene.agent(session) for _ in range(3)]
    bystander = actors.pop(dice.randrange(3))
    return actors[0], actors[1], bystander


def _kill_and_be_noticed(scene: Scene, dice: random.Random, *victims: Actor) -> None:
    """Agents are killed, and the supervisor is somewhere in the middle of healing that."""
    before = len(scene.entries())
    for victim in victims:
        send(victim.process, signal.SIGKILL)
    scene.wait(lambda: len(scene.entries()) > before, "the daemon noticed nothing")
    time.sleep(dice.random() * 0.004)  # not a wait: the random moment


def supervisor_killed(scene: Scene, dice: random.Random) -> Watch:
    """The supervisor is killed in the middle of healing, and started again."""
    first, second, bystander = _team(scene, dice)
    _kill_and_be_noticed(scene, dice, first, second)
    scene.kill_daemon()
    scene.start_daemon()
    return agents_gone(scene, [first, second], [bystander])


def supervisor_upgraded(scene: Scene, dice: random.Random) -> Watch:
    """The supervisor is replaced in the middle of healing, on what an older version wrote; an agent dies meanwhile."""
    first, second, bystander = _team(scene, dice)
    _kill_and_be_noticed(scene, dice, first)
    scene.stop_daemon()
    version = Paths(scene.project).folder / own_files.VERSION_FILE
    version.unlink()  # older versions wrote none
    send(second.process, signal.SIGKILL)
    scene.start_daemon()
    watch = agents_gone(scene, [first, second], [bystander])
    watch.kept.append(version)
    return watch


def supervisor_oom(scene: Scene, dice: random.Random) -> Watch:
    """The supervisor has no memory left while agents die, is killed for it, as the kernel does, and started again."""
    first, second, bystander = _team(scene, dice)
    said = scene.daemon_said()
    scene.starve_daemon()
    for victim in (first, second):
        send(victim.process, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # it may be too weak to say anything
        scene.wait(lambda: scene.daemon_said() > said or not scene.daemon_runs(), "it said nothing", limit_s=2.0)
    scene.kill_daemon()
    scene.start_daemon()
    return agents_gone(scene, [first, second], [bystander])


def clock_jump(scene: Scene, dice: random.Random) -> Watch:
    """The wall clock jumps by a day, and an agent is killed: only its own things are given back."""
    session = scene.session()
    victim, bystander = scene.agent(session), scene.agent(session, busy=True)
    resource = f"src/{dice.randrange(10**9)}.py"
    scene.command("lease", "acquire", resource, "--owner", bystander.name, "--ttl", "3600")
    ahead_s = dice.choice((-86400.0, 86400.0))
    scene.set_wall_clock(ahead_s)
    send(victim.process, signal.SIGKILL)
    watch = agents_gone(scene, [victim], [bystander])
    watch.ahead_s = ahead_s
    watch.kept.append(scene.planning(".locks") / plugin_leases.lease_file(resource))
    return watch


FAULTS: tuple[Fault, ...] = (supervisor_killed, supervisor_upgraded, supervisor_oom, clock_jump)
