"""Faults of the supervisor and its clock."""

from __future__ import annotations

import contextlib
import random
import signal
import time

from yolo_supervisor.drill.sandbox import FakeAgent, Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault, agents_gone, send
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import leases as plugin_leases


def _team(sandbox: Sandbox, rng: random.Random) -> tuple[FakeAgent, FakeAgent, FakeAgent]:
    """Two victims and one bystander."""
    session = sandbox.session()
    agents = [sandbox.agent(session) for _ in range(3)]
    bystander = agents.pop(rng.randrange(3))
    return agents[0], agents[1], bystander


def _kill_agents(sandbox: Sandbox, rng: random.Random, *victims: FakeAgent) -> None:
    """Kill agents, and return at a random moment of their recovery."""
    before = len(sandbox.entries())
    for victim in victims:
        send(victim.process, signal.SIGKILL)
    sandbox.wait(lambda: len(sandbox.entries()) > before, "the daemon detected no death")
    time.sleep(rng.random() * 0.004)  # not a wait: the random moment


def supervisor_killed(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """The supervisor is killed during a recovery, and started again."""
    first, second, bystander = _team(sandbox, rng)
    _kill_agents(sandbox, rng, first, second)
    sandbox.kill_daemon()
    sandbox.start_daemon()
    return agents_gone(sandbox, [first, second], [bystander])


def supervisor_upgraded(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """The supervisor is upgraded from 0.1.0 during a recovery; an agent dies meanwhile."""
    first, second, bystander = _team(sandbox, rng)
    _kill_agents(sandbox, rng, first)
    sandbox.stop_daemon()
    paths = sandbox.paths
    paths.link.unlink()
    paths.folder.rename(paths.link)  # version 0.1.0 had its state folder in the project
    version, enrolment = own_files.VERSION_FILE, own_files.ENROLMENT
    for newer in (version, enrolment):  # and wrote neither
        (paths.link / newer).unlink()
    send(second.process, signal.SIGKILL)
    sandbox.start_daemon()
    expected = agents_gone(sandbox, [first, second], [bystander])
    expected.kept_files += [paths.folder / version, paths.folder / enrolment]
    return expected


def supervisor_oom(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """The supervisor runs out of memory while agents die, is killed and started again."""
    first, second, bystander = _team(sandbox, rng)
    logged = sandbox.daemon_log_size()
    sandbox.starve_daemon()
    for victim in (first, second):
        send(victim.process, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # it may not even be able to log
        sandbox.wait(
            lambda: sandbox.daemon_log_size() > logged or not sandbox.daemon_runs(), "it logged nothing", limit_s=2.0
        )
    sandbox.kill_daemon()
    sandbox.start_daemon()
    return agents_gone(sandbox, [first, second], [bystander])


def clock_jump(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """The wall clock jumps by a day, and an agent is killed: only what it held is released."""
    session = sandbox.session()
    victim, bystander = sandbox.agent(session), sandbox.agent(session, busy=True)
    resource = f"src/{rng.randrange(10**9)}.py"
    sandbox.run_command("lease", "acquire", resource, "--owner", bystander.name, "--ttl", "3600")
    ahead_s = rng.choice((-86400.0, 86400.0))
    sandbox.set_wall_clock(ahead_s)
    send(victim.process, signal.SIGKILL)
    expected = agents_gone(sandbox, [victim], [bystander])
    expected.ahead_s = ahead_s
    expected.kept_files.append(sandbox.planning(".locks") / plugin_leases.lease_file(resource))
    return expected


FAULTS: tuple[Fault, ...] = (supervisor_killed, supervisor_upgraded, supervisor_oom, clock_jump)
