"""What can happen to a team: each fault is done for real, and says what being healed means for it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from yolo_supervisor.crashes import load
from yolo_supervisor.drill.client import Client
from yolo_supervisor.drill.scene import TEAM, Actor, Scene
from yolo_supervisor.files import digest, glance
from yolo_supervisor.formats import contracts, load_object, supervisor, yolo
from yolo_supervisor.formats.tasks import SET_ASIDE
from yolo_supervisor.records import Agent, ProcessId, from_iso
from yolo_supervisor.store import Paths


@dataclass
class Round:
    """How one fault went once. Times are seconds since the fault."""

    detect_s: float | None = None
    heal_s: float | None = None
    lost: int = 0
    why: str = ""
    """What went wrong, where something did."""


@dataclass
class Watch:
    """What a fault wants to see: what must be healed, and who must not be touched."""

    healed: Callable[[], bool]
    keys: frozenset[str]
    """What the journal calls the victims."""
    told: tuple[str, ...]
    """The journal's actions about a victim of which the first counts as noticing the fault."""
    bystanders: list[Actor] = field(default_factory=list)
    strangers: list[ProcessId] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    """Files that must be there afterwards."""
    ahead_s: float = 0.0
    """How far the daemon's wall clock is ahead of ours."""


Fault = Callable[[Scene, random.Random], Watch]


def _agents(
    scene: Scene, victims: list[Actor], bystanders: Sequence[Actor] = (), told: tuple[str, ...] = ("died",)
) -> Watch:
    """Agents that are gone: all that they left has to be taken care of."""
    keys = frozenset(f"{victim.name}@{TEAM}" for victim in victims)
    return Watch(lambda: all(_healed(scene, victim) for victim in victims), keys, told, list(bystanders))


def _signal(process: ProcessId, number: int) -> None:
    os.kill(process.pid, number)  # our own children's children, whose identity the scene holds


def agent_killed(scene: Scene, dice: random.Random) -> Watch:
    """An agent is killed with SIGKILL; its tool lives on in a session of its own."""
    session = scene.session()
    actors = [scene.agent(session) for _ in range(2)]
    victim = actors.pop(dice.randrange(2))
    _signal(victim.process, signal.SIGKILL)
    return _agents(scene, [victim], actors)


def _dies(scene: Scene, way: str, died_of: str) -> tuple[Actor, Watch]:
    """An agent that dies by its own hand: the report must say of what."""
    session = scene.session()
    bystander, victim = scene.agent(session), scene.agent(session, dies=way)
    key = f"{victim.name}@{TEAM}"
    _signal(victim.process, signal.SIGUSR1)
    watch = _agents(scene, [victim], [bystander])
    healed = watch.healed

    def explained() -> bool:
        told = [e["evidence"] for e in scene.entries() if (e["action"], e["key"]) == ("died", key)]
        report = load(glance(Paths(scene.project).crashes / f"{told[0].get('report')}.json") or b"") if told else None
        return healed() and report is not None and report["class"] == told[0]["class"] == died_of

    watch.healed = explained
    return victim, watch


def agent_segfault(scene: Scene, dice: random.Random) -> Watch:
    """An agent breaks with a segmentation fault."""
    return _dies(scene, "segfault", "signal")[1]


def agent_oom(scene: Scene, dice: random.Random) -> Watch:
    """An agent runs out of memory, under a limit of its own."""
    return _dies(scene, "oom", "oom")[1]


def agent_api_errors(scene: Scene, dice: random.Random) -> Watch:
    """The model's server is overloaded, and an agent gives up."""
    return _dies(scene, "api-errors", "api_error")[1]


def agent_rate_limited(scene: Scene, dice: random.Random) -> Watch:
    """An agent has used up its rate: its task is held for a while, and given back without an attempt being charged."""
    scene.configure(tasks={"hold_s": 2.0})
    victim, watch = _dies(scene, "rate-limited", "rate_limited")
    key = f"{TEAM}/{victim.task.stem}"
    explained = watch.healed

    def held() -> bool:
        mine = [e for e in scene.entries() if e["key"] == key]
        told = {e["action"]: e for e in mine}
        if not explained() or not {"escalated", "requeued"} <= told.keys():
            return False
        wait_s = from_iso(told["requeued"]["at"]).timestamp() - from_iso(told["escalated"]["at"]).timestamp()
        return told["requeued"]["evidence"].get("charged") is False and wait_s > 1.0

    watch.healed = held
    return watch


def agent_ignores_sigterm(scene: Scene, dice: random.Random) -> Watch:
    """Its session is closed, and the agent ignores SIGHUP and SIGTERM."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session, ignore_sigterm=True), scene.agent(other)
    session.kill()
    return _agents(scene, [victim], [bystander], told=("terminated", "died"))


def session_killed(scene: Scene, dice: random.Random) -> Watch:
    """A tmux session is closed with an agent in it, another goes on."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session), scene.agent(other)
    session.kill()
    return _agents(scene, [victim], [bystander])


def session_detached(scene: Scene, dice: random.Random) -> Watch:
    """The last person leaves a session; a session that nobody ever looked at goes on."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session), scene.agent(other)
    scene.attach(session)
    scene.detach()
    return _agents(scene, [victim], [bystander], told=("terminated", "died"))


def tmux_server_killed(scene: Scene, dice: random.Random) -> Watch:
    """The tmux server itself is killed, and with it every terminal."""
    session = scene.session()
    victims = [scene.agent(session) for _ in range(2)]
    os.kill(scene.server_pid(), signal.SIGKILL)
    return _agents(scene, victims)


def supervisor_killed(scene: Scene, dice: random.Random) -> Watch:
    """The supervisor is killed in the middle of healing, and started again."""
    session = scene.session()
    actors = [scene.agent(session) for _ in range(3)]
    bystander = actors.pop(dice.randrange(3))
    before = len(scene.entries())
    for victim in actors:
        _signal(victim.process, signal.SIGKILL)
    scene.wait(lambda: len(scene.entries()) > before, "the daemon noticed nothing")
    time.sleep(dice.random() * 0.004)  # not a wait: the random moment of the crash
    scene.kill_daemon()
    scene.start_daemon()
    return _agents(scene, actors, [bystander])


def pid_reused(scene: Scene, dice: random.Random) -> Watch:
    """An agent's recorded pid belongs to a stranger by now: its task is given back, the stranger lives."""
    session = scene.session()
    bystander = scene.agent(session)
    stranger = scene.stranger()
    scene.kill_daemon()  # the record is as an earlier supervisor left it
    task = bystander.task.with_name(f"{bystander.task.stem}9.json")
    name = f"ghost-{task.stem}"
    before = bystander.task.read_text()
    task.write_text(before.replace(bystander.name, name))
    gone = ProcessId(stranger.pid, stranger.started - 1, stranger.boot)
    ghost = Agent(
        id=f"{name}@{TEAM}", name=name, role="dev", team=TEAM, source="record", since=from_iso("2026-01-01"),
        process=gone, pid=gone.pid, claude_dir=scene.claude,
    )  # fmt: skip
    (Paths(scene.project).agents / supervisor.agent_file(ghost)).write_bytes(supervisor.dump_agent(ghost))
    scene.start_daemon()
    watch = _agents(scene, [Actor(name, gone, gone, task)], [bystander])
    watch.strangers.append(stranger)
    return watch


def mass_death(scene: Scene, dice: random.Random) -> Watch:
    """Eight of nine agents are killed at once."""
    session = scene.session()
    actors = [scene.agent(session) for _ in range(9)]
    bystander = actors.pop(dice.randrange(9))
    for victim in actors:
        _signal(victim.process, signal.SIGKILL)
    return _agents(scene, actors, [bystander])


def task_orphaned(scene: Scene, dice: random.Random) -> Watch:
    """A task is in progress, and nobody has ever heard of its owner."""
    bystander = scene.agent(scene.session(), busy=True)
    scene.configure(tasks={"idle_limit_s": 1.0, "interval_s": 0.25})
    task = scene.task("nobody")
    return Watch(lambda: scene.free(task), frozenset({f"{TEAM}/{task.stem}"}), ("requeued",), [bystander])


def owner_hung(scene: Scene, dice: random.Random) -> Watch:
    """An agent stops doing anything at all, and lives on: its task is given back, it is left alone."""
    session = scene.session()
    victim, bystander = scene.agent(session), scene.agent(session, busy=True)
    _signal(victim.process, signal.SIGSTOP)
    scene.configure(tasks={"idle_limit_s": 1.0, "interval_s": 0.25})
    keys = frozenset({f"{TEAM}/{victim.task.stem}"})
    return Watch(lambda: scene.free(victim.task), keys, ("requeued",), [bystander], [victim.process, victim.tool])


def poison_task(scene: Scene, dice: random.Random) -> Watch:
    """One agent after the other dies of the same task: it is set aside, where nobody can claim it."""
    session = scene.session()
    scene.configure(tasks={"poison_s": 60.0})
    bystander, victim = scene.agent(session), scene.agent(session)
    _signal(victim.process, signal.SIGKILL)
    scene.wait(lambda: _healed(scene, victim), "it was not healed the first time")
    _signal(scene.agent(session, task=victim.task).process, signal.SIGKILL)
    keys = frozenset({f"{TEAM}/{victim.task.stem}"})
    return Watch(lambda: scene.owner(victim.task) == SET_ASIDE, keys, ("dead_lettered",), [bystander])


def lease_abandoned(scene: Scene, dice: random.Random) -> Watch:
    """A lease runs out whose holder is nobody that is there."""
    locks = scene.planning(".locks")
    lease = locks / "src__api.py.lease"
    lease.write_bytes(yolo.dump_lease("src/api.py", "nobody", datetime.now(UTC) - timedelta(seconds=60), 60))
    return Watch(lambda: not lease.exists(), frozenset({"src/api.py"}), ("released",))


def state_emptied(scene: Scene, dice: random.Random) -> Watch:
    """A crash leaves the plugin's execution state empty."""
    state = scene.planning() / yolo.STATE_FILE
    whole = yolo.dump(
        {"phase": 1, "status": "running", "plans": [{"id": "01-01", "status": dice.choice(("pending", "complete"))}]}
    )
    state.write_bytes(whole)
    sidecar = state.with_name(f"{state.name}.sha256")
    scene.wait(lambda: glance(sidecar) == str(digest(whole)).encode(), "it was not kept as a good version")
    state.write_bytes(b"")
    return Watch(lambda: glance(state) == whole, frozenset({yolo.STATE_FILE}), ("restored",))


def lock_ownerless(scene: Scene, dice: random.Random) -> Watch:
    """A killed git has left index.lock behind; that of another checkout, where a git is at work, stays."""
    project, other = scene.repository(), scene.folder / f"checkout-{dice.randrange(10**9)}"
    scene.configure(leases={"interval_s": 0.25})
    scene.git("worktree", "add", "-q", str(other))
    held = project / ".git" / "worktrees" / other.name / "index.lock"
    holder = scene.stranger("git", "cat-file", "--batch", folder=other)
    held.touch()
    left = project / ".git" / "index.lock"
    left.touch()
    return Watch(lambda: not left.exists(), frozenset({left.name}), ("released",), strangers=[holder], kept=[held])


def late_completion(scene: Scene, dice: random.Random) -> Watch:
    """An agent that was given up finishes after all: it counts unless another has begun anew."""
    session = scene.session()
    victim, bystander = scene.agent(session), scene.agent(session, busy=True)
    task = scene.task()
    ident = f"{TEAM}/{task.stem}"
    claim = scene.command("task", "claim", ident, "--owner", victim.name)
    _signal(victim.process, signal.SIGSTOP)
    scene.configure(tasks={"idle_limit_s": 1.0, "interval_s": 0.25})
    scene.wait(lambda: scene.free(task), "the task was not given back")
    too_late = dice.random() < 0.5
    if too_late:
        scene.command("task", "claim", ident, "--owner", bystander.name)
    scene.begin("task", "done", ident, "--owner", victim.name, "--token", str(claim["token"]))
    status, owner = ("in_progress", bystander.name) if too_late else ("completed", victim.name)
    told = ("escalated",) if too_late else ("completed",)

    def settled() -> bool:
        found = load_object(task.read_bytes()) or {}
        entries = [e for e in scene.entries() if e["key"] == ident and e["action"] in told]
        return bool(entries) and (found.get("status"), found.get("owner")) == (status, owner)

    return Watch(settled, frozenset({ident}), told, [bystander], [victim.process])


def clock_jump(scene: Scene, dice: random.Random) -> Watch:
    """The wall clock jumps by a day, and an agent is killed: only its own things are given back."""
    session = scene.session()
    victim, bystander = scene.agent(session), scene.agent(session, busy=True)
    resource = f"src/{dice.randrange(10**9)}.py"
    scene.command("lease", "acquire", resource, "--owner", bystander.name, "--ttl", "3600")
    ahead_s = dice.choice((-86400.0, 86400.0))
    scene.set_wall_clock(ahead_s)
    _signal(victim.process, signal.SIGKILL)
    watch = _agents(scene, [victim], [bystander])
    watch.ahead_s = ahead_s
    watch.kept.append(scene.planning(".locks") / yolo.lease_file(resource))
    return watch


def flag_broken(scene: Scene, dice: random.Random) -> Watch:
    """What a feature flag has switched on fails every time: it is switched off, another one stays."""
    flag, other = (f"v9_drill_{name}_{dice.randrange(10**9)}" for name in ("broken", "sound"))
    config = scene.planning() / "config.json"
    text = f'{{\n  "{other}": true, "{flag}":true,\n\t"effort": "balanced"}}'
    config.write_text(text)
    for _ in range(4):
        scene.command("flag", "record", flag, "error")
        scene.command("flag", "record", other, "ok")
    scene.begin("flag", "record", flag, "error")
    healed = text.replace(f'"{flag}":true', f'"{flag}":false').encode()
    return Watch(lambda: glance(config) == healed, frozenset({flag}), ("disabled",))


SERVER = "yolo_supervisor.drill.server"
"""What the relay calls the scratch server, by its command."""


def _mcp(scene: Scene, dice: random.Random, trouble: str, times: int) -> Client:
    notebook = scene.folder / f"notebook-{dice.randrange(10**9)}"
    notebook.touch()
    return scene.client(sys.executable, "-m", SERVER, str(notebook), trouble, str(times))


def _call(client: Client) -> Watch:
    number = client.ask("tools/call", name="echo", arguments={})
    return Watch(lambda: client.well(number), frozenset({SERVER}), ("recovered",))


def mcp_error(scene: Scene, dice: random.Random) -> Watch:
    """An MCP server answers one to three times in a row that something went wrong inside it."""
    return _call(_mcp(scene, dice, "error", dice.randint(1, 3)))


def mcp_hang(scene: Scene, dice: random.Random) -> Watch:
    """An MCP server does not answer a call at all."""
    return _call(_mcp(scene, dice, "hang", 1))


def mcp_crash(scene: Scene, dice: random.Random) -> Watch:
    """An MCP server dies in the middle of a call."""
    return _call(_mcp(scene, dice, "crash", dice.randint(1, 3)))


def mcp_flapping(scene: Scene, dice: random.Random) -> Watch:
    """An MCP server dies at every call: it is switched off, tried again later, and is well by then."""
    client = _mcp(scene, dice, "crash", 5)
    numbers = [client.ask("tools/call", name="echo", arguments={})]

    def healed() -> bool:
        if (answer := client.answer(numbers[-1])) is not None and "error" in answer:
            numbers.append(client.ask("tools/call", name="echo", arguments={}))
        return client.well(numbers[-1])

    return Watch(healed, frozenset({SERVER, f"{SERVER}/echo"}), ("disabled",))


def _command(scene: Scene, program: str) -> Watch:
    """The command works in a folder of its own: whoever is still there afterwards was left behind."""
    folder = scene.workplace()
    child = scene.begin("exec", "--timeout", "1", "--", sys.executable, "-c", program, folder=folder)
    return Watch(
        lambda: child.poll() == 124 and not scene.anybody_in(folder), frozenset({sys.executable}), ("terminated",)
    )


def command_hangs(scene: Scene, dice: random.Random) -> Watch:
    """A command hangs, and so does what it has started in a session of its own."""
    return _command(scene, "import subprocess as s; s.Popen(['setsid', 'sleep', '3600']); s.run(['sleep', '3600'])")


def command_ignores_sigterm(scene: Scene, dice: random.Random) -> Watch:
    """A command takes too long, and ignores SIGTERM."""
    return _command(scene, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)")


def _change(scene: Scene, name: str, text: str, theirs: bool = False) -> str:
    """Change a file in the project, and have it staged; or, as somebody else, commit and push it."""
    folder = scene.other if theirs else scene.project
    if theirs:
        scene.git("pull", "-q", "--rebase", folder=folder)
    (folder / name).write_text(text)
    scene.git("add", name, folder=folder)
    if theirs:
        scene.git("commit", "-q", "-m", f"theirs: {text}", folder=folder)
        scene.git("push", "-q", folder=folder)
    return f"ours: {text}"


def _pushed(scene: Scene, message: str) -> int:
    """How often a commit with that message is upstream."""
    return scene.git("log", "--format=%s", folder=scene.upstream()).splitlines().count(message)


def _race(scene: Scene, dice: random.Random, theirs: str, ours: str) -> tuple[str, Callable[[], bool]]:
    """Somebody else has pushed a change of one file before, ours of another is staged, and a third is still being
    written. The message to commit with, and whether that third file is as it was."""
    scene.upstream()
    _change(scene, theirs, str(dice.random()), theirs=True)
    message = _change(scene, ours, str(dice.random()))
    unfinished, words = scene.project / "unfinished.txt", str(dice.random())
    unfinished.write_text(words)
    return message, lambda: unfinished.read_text() == words


def commit_index_lock(scene: Scene, dice: random.Random) -> Watch:
    """A killed git has left index.lock behind, and somebody wants to commit."""
    scene.repository()
    (scene.project / ".git" / "index.lock").touch()
    child = scene.begin("commit", "-q", "--allow-empty", "-m", "locked")
    return Watch(lambda: child.poll() == 0, frozenset({"index.lock"}), ("released",))


def commit_non_fast_forward(scene: Scene, dice: random.Random) -> Watch:
    """Somebody else was quicker to push: our commit goes on top of theirs, unfinished work stays as it is."""
    message, untouched = _race(scene, dice, "theirs.txt", "ours.txt")
    child = scene.begin("commit", "--push", "-q", "-m", message)
    return Watch(
        lambda: child.poll() == 0 and _pushed(scene, message) == 1 and untouched(),
        frozenset({str(scene.project)}), ("rebased",),
    )  # fmt: skip


def commit_conflict(scene: Scene, dice: random.Random) -> Watch:
    """Somebody else has pushed another change of the same line: everything stays as it was, and a person is told."""
    message, untouched = _race(scene, dice, "same.txt", "same.txt")
    child = scene.begin("commit", "--push", "-q", "-m", message)

    def settled() -> bool:
        if child.poll() is None:
            return False
        kept = scene.git("log", "-1", "--format=%s") == message and untouched()
        told = any(e["action"] == "escalated" and e["key"] == str(scene.project) for e in scene.entries())
        if kept and told:  # the person decides, so that the next fault finds a project that can be pushed
            scene.git("reset", "-q", "--hard", "@{upstream}")
        return child.returncode == 1 and kept and told

    return Watch(settled, frozenset({str(scene.project)}), ("escalated",))


def commit_killed_midway(scene: Scene, dice: random.Random) -> Watch:
    """The commit is killed in the middle of going on top of somebody else's, and made again."""
    message, untouched = _race(scene, dice, "theirs.txt", "ours.txt")
    first = scene.begin("commit", "--push", "-q", "-m", message)
    time.sleep(dice.random() * 0.4)  # not a wait: the random moment of the crash
    first.kill()
    first.wait()
    tries = [scene.begin("commit", "--push", "-q", "--allow-empty", "-m", "again")]

    def landed() -> bool:
        if tries[-1].poll() not in (None, 0):  # what the killed one had begun may still be ending
            tries.append(scene.begin("commit", "--push", "-q", "--allow-empty", "-m", "again"))
        done = tries[-1].poll() == 0 and untouched()
        return done and _pushed(scene, message) <= 1 and scene.git("diff", "HEAD", "@{upstream}") == ""

    return Watch(landed, frozenset({str(scene.project)}), ("rebased",))


def commit_disk_full(scene: Scene, dice: random.Random) -> Watch:
    """There is no room for the commit: nothing is half done, and it goes well when there is room again."""
    scene.repository()
    message = _change(scene, "ours.txt", str(dice.random()))
    tools = scene.workplace()
    narrow = tools / "git"
    narrow.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 0\nexec {shutil.which('git')} \"$@\"\n")
    narrow.chmod(0o755)
    before = scene.git("rev-parse", "HEAD")
    tries = [scene.begin("commit", "-q", "-m", message, tools=tools)]

    def healed() -> bool:
        if len(tries) == 1 and tries[0].poll() is not None:
            if scene.git("rev-parse", "HEAD") != before or tries[0].returncode == 0:
                return False
            tries.append(scene.begin("commit", "-q", "-m", message))
        return len(tries) == 2 and tries[1].poll() == 0 and scene.git("log", "-1", "--format=%s") == message

    return Watch(healed, frozenset({str(scene.project)}), ("escalated",))


PLAN = """---
phase: 5
plan: 1
title: Drill
must_haves: [it works]
---
## Task 1
**Files:** src/a.py
## Task 2
**Files:** src/b.py
"""


def contract_broken(scene: Scene, dice: random.Random) -> Watch:
    """A crash leaves a plan's contract broken, and its gate lets nobody through: it is generated anew from the plan."""
    phase, contract = scene.planning("phases") / "05-drill", scene.planning(".contracts") / "5-1.json"
    phase.mkdir(exist_ok=True)
    (phase / "05-01-PLAN.md").write_text(PLAN)
    (scene.planning() / "config.json").write_text('{"v2_hard_gates": true, "v2_hard_contracts": true}')
    contract.write_bytes(dice.choice((b'{"phase": 5, "plan": 1, "contract_hash": "no"}', b'{"phase": 5}')))
    child = scene.begin("gate", "repair", "contract_compliance", "5", "1", "2")
    key = "contract_compliance/5-1-T2"
    return Watch(lambda: child.poll() == 0 and contracts.intact(contract.read_bytes()), frozenset({key}), ("repaired",))


FAULTS: dict[str, Fault] = {
    "agent-killed": agent_killed,
    "agent-segfault": agent_segfault,
    "agent-oom": agent_oom,
    "agent-api-errors": agent_api_errors,
    "agent-rate-limited": agent_rate_limited,
    "agent-ignores-sigterm": agent_ignores_sigterm,
    "session-killed": session_killed,
    "session-detached": session_detached,
    "tmux-server-killed": tmux_server_killed,
    "supervisor-killed": supervisor_killed,
    "pid-reused": pid_reused,
    "mass-death": mass_death,
    "task-orphaned": task_orphaned,
    "owner-hung": owner_hung,
    "poison-task": poison_task,
    "late-completion": late_completion,
    "lease-abandoned": lease_abandoned,
    "lock-ownerless": lock_ownerless,
    "state-emptied": state_emptied,
    "clock-jump": clock_jump,
    "flag-broken": flag_broken,
    "mcp-error": mcp_error,
    "mcp-hang": mcp_hang,
    "mcp-crash": mcp_crash,
    "mcp-flapping": mcp_flapping,
    "command-hangs": command_hangs,
    "command-ignores-sigterm": command_ignores_sigterm,
    "contract-broken": contract_broken,
    "commit-index-lock": commit_index_lock,
    "commit-non-fast-forward": commit_non_fast_forward,
    "commit-conflict": commit_conflict,
    "commit-killed-midway": commit_killed_midway,
    "commit-disk-full": commit_disk_full,
}


def play(scene: Scene, fault: Fault, dice: random.Random) -> Round:
    """Do the fault once and watch it being healed."""
    result = Round()
    before = len(scene.entries())
    try:
        watch = fault(scene, dice)
        began = time.time()
        scene.wait(watch.healed, "it was not healed in time")
        healed = time.time()
        result.heal_s = max(0.0, healed - began)
        scene.wait(lambda: _told(scene, watch, before), "the journal does not tell of it")
        result.detect_s = max(0.0, _first(_told(scene, watch, before)) - watch.ahead_s - began)
        touched = [actor.name for actor in watch.bystanders if not scene.intact(actor)]
        touched += [f"process {stranger.pid}" for stranger in watch.strangers if not scene.alive(stranger)]
        touched += [path.name for path in watch.kept if not path.exists()]
        if touched:
            result.why = f"harmed: {', '.join(touched)}"
            result.lost = len(touched)
    except OSError as error:  # what is not healed in time, too
        result.why = str(error)
    scene.set_wall_clock(0.0)
    result.lost += scene.lost()
    return result


def _told(scene: Scene, watch: Watch, before: int) -> list[dict[str, Any]]:
    """What the journal tells of the victims since this fault began."""
    return [e for e in scene.entries()[before:] if e["key"] in watch.keys and e["action"] in watch.told]


def _first(entries: Iterable[dict[str, Any]]) -> float:
    return min(from_iso(entry["at"]).timestamp() for entry in entries)


def _healed(scene: Scene, victim: Actor) -> bool:
    """The task may be claimed again, nothing of the agent runs, and the supervisor has closed the case."""
    return (
        scene.free(victim.task)
        and not scene.alive(victim.process)
        and not scene.alive(victim.tool)
        and any(e["action"] == "forgotten" and e["key"] == f"{victim.name}@{TEAM}" for e in scene.entries())
    )
