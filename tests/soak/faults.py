"""The faults of a soak. Each is injected at a moment that a seed decides, also while others are open."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from soak.oracle import Oracle
from soak.team import StateFile, Team, Worker
from soak.world import World
from yolo_supervisor.formats.plugin.leases import lease_file
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import from_iso

LEASE_S = 2
"""The time for which a lease is granted, in seconds."""


@dataclass(eq=False)
class Fault:
    """One injected fault."""

    kind: str
    what: str
    healed: Callable[[], bool]
    injected_s: float = field(default_factory=time.monotonic)
    healed_s: float | None = None
    lost: str = ""
    """A sentence about the loss by the fault; empty if there is none."""


class Faults:
    """Injects faults. Each method returns the fault, or None if it has no target now."""

    def __init__(self, world: World, oracle: Oracle, rng: random.Random) -> None:
        self._world = world
        self._oracle = oracle
        self._rng = rng
        self._daemon_fault = False
        self._clock_fault = False
        self._commands: list[subprocess.Popen[bytes]] = []
        self.open: list[Fault] = []
        self.over: list[Fault] = []
        self.kinds: dict[str, tuple[float, Callable[[], Fault | None]]] = {
            "agent killed": (5, self.agent_killed),
            "agent stopped": (2, self.agent_stopped),
            "agent stopped and killed": (1, self.agent_stopped_and_killed),
            "several agents killed": (1, self.agents_killed),
            "daemon killed": (1, self.daemon_killed),
            "daemon stopped": (1, self.daemon_stopped),
            "disk full": (1, self.disk_full),
            "clock jump": (1, self.clock_jump),
            "file torn": (2, self.file_torn),
            "file replaced": (2, self.file_replaced),
            "claimed by several": (2, self.claimed_by_several),
            "done by several": (1, self.done_by_several),
            "command killed": (2, self.command_killed),
            "lease by several": (1, self.lease_by_several),
            "lock left by git": (0.5, self.lock_left),
        }

    def inject(self) -> Fault | None:
        """Inject one at random."""
        kinds = list(self.kinds)
        (kind,) = self._rng.choices(kinds, [self.kinds[kind][0] for kind in kinds])
        return self.kinds[kind][1]()

    def watch(self) -> None:
        """Close the open faults that are healed by now."""
        for fault in tuple(self.open):
            if fault.healed():
                fault.healed_s = time.monotonic()
                self.open.remove(fault)
                self.over.append(fault)

    def _fault(self, kind: str, what: str, healed: Callable[[], bool]) -> Fault:
        fault = Fault(kind, what, healed)
        self.open.append(fault)
        return fault

    # -- agents ----------------------------------------------------------------------------------------------------

    def _victim(self, wanted: Callable[[Worker], bool] = lambda worker: True) -> Worker | None:
        """A living agent that the supervisor knows with all that it has started."""
        now_s = time.monotonic()
        workers = [w for w in self._world.workers if w.alive and not w.reserved and not w.stopped and wanted(w)]
        self._rng.shuffle(workers)
        old_enough = (w for w in workers if w.ready.exists() and now_s - w.started_s > 1.5)
        return next((worker for worker in old_enough if worker.team.knows(worker)), None)

    def _kill(self, worker: Worker, kind: str) -> Fault:
        task = worker.task
        doing = f"task {task.ident} {'asked' if worker.command else 'held'}" if task else "no task"
        what = f"{worker.name} of {worker.team.name} with {doing}, tool {worker.tool_kind}"
        self._world.kill_agent(worker)
        return self._fault(kind, what, lambda: self._oracle.is_recovered(worker, task))

    def agent_killed(self) -> Fault | None:
        worker = self._victim()
        forks = worker is not None and worker.tool_kind in ("chain", "tree", "left")
        return self._kill(worker, "agent killed, its tools fork" if forks else "agent killed") if worker else None

    def agents_killed(self) -> Fault | None:
        fault = None
        for _ in range(self._rng.randint(2, 5)):
            if (worker := self._victim()) is not None:
                fault = self._kill(worker, "several agents killed")
        return fault

    def agent_stopped(self) -> Fault | None:
        worker = self._victim()
        if worker is None:
            return None
        self._world.stop_agent(worker)
        ended: list[float] = []

        def go_on() -> None:
            self._world.continue_agent(worker)
            ended.append(time.monotonic())

        self._world.later(self._rng.uniform(0.5, 6.0), go_on)
        return self._fault(
            "agent stopped", worker.name, lambda: bool(ended) and time.monotonic() - ended[0] > 1.0 and
            (worker.killed or worker.task is None or self._oracle.is_settled(worker.task)),
        )  # fmt: skip

    def agent_stopped_and_killed(self) -> Fault | None:
        worker = self._victim()
        if worker is None:
            return None
        self._world.stop_agent(worker)
        time.sleep(self._rng.uniform(0.0, 0.3))
        return self._kill(worker, "agent stopped and killed")

    # -- the daemon and its surroundings ---------------------------------------------------------------------------

    def _probed(self, kind: str, what: str, begin: Callable[[], None], s: float, end: Callable[[], None]) -> Fault:
        """A fault of the daemon: afterwards an agent is killed, whose end the daemon has to heal."""
        probes: list[Fault] = []
        begin()

        def probe() -> None:
            worker = self._victim()
            if worker is None:
                self._world.later(0.5, probe)
            else:
                probes.append(self._kill(worker, "agent killed"))

        def over() -> None:
            end()
            probe()

        self._world.later(s, over)
        return self._fault(
            kind, f"{what} for {s:.1f} s".strip(), lambda: bool(probes) and probes[0].healed_s is not None
        )

    def daemon_killed(self) -> Fault | None:
        daemon = self._world.daemon
        if self._daemon_fault or daemon is None:
            return None
        self._daemon_fault = True

        def again() -> None:
            self._world.start_daemon()
            if self._world.disk_full and not self._world.mounted:
                self._world.fill_disk()
            self._daemon_fault = False

        return self._probed("daemon killed", "", self._world.kill_daemon, self._rng.uniform(0.0, 3.0), again)

    def daemon_stopped(self) -> Fault | None:
        daemon = self._world.daemon
        if self._daemon_fault or daemon is None:
            return None
        self._daemon_fault = True

        def go_on() -> None:
            daemon.send_signal(signal.SIGCONT)
            self._daemon_fault = False

        return self._probed(
            "daemon stopped", "", lambda: daemon.send_signal(signal.SIGSTOP), self._rng.uniform(0.3, 6.0), go_on
        )

    def disk_full(self) -> Fault | None:
        if self._world.disk_full:
            return None
        kind = "disk full" if self._world.mounted else "size limit"
        return self._probed(kind, "", self._world.fill_disk, self._rng.uniform(0.5, 6.0), self._world.empty_disk)

    def clock_jump(self) -> Fault | None:
        if self._clock_fault:
            return None
        self._clock_fault = True
        ahead_s = self._rng.choice((-1, 1)) * self._rng.choice((5.0, 600.0, 86400.0, 30 * 86400.0))

        def back() -> None:
            self._world.set_wall_clock(0.0)
            self._clock_fault = False

        s = self._rng.uniform(0.5, 10.0)
        return self._probed("clock jump", f"{ahead_s:+.0f} s,", lambda: self._world.set_wall_clock(ahead_s), s, back)

    # -- files -----------------------------------------------------------------------------------------------------

    def _file(self, wanted: Callable[[Team, StateFile], bool]) -> tuple[Team, StateFile] | None:
        found = [(team, file) for team in self._world.teams for file in team.files if wanted(team, file)]
        return self._rng.choice(found) if found else None

    def file_torn(self) -> Fault | None:
        """A writer truncates a file and writes a part of it."""
        chosen = self._file(lambda team, file: file.torn is None and team.has_copy(file.written))
        if chosen is None or self._world.disk_full:
            return None
        team, file = chosen
        data = file.written
        parts = [b"", b"\0" * len(data)]
        if file.path.suffix == ".json":
            parts.append(data[: self._rng.randrange(1, len(data) - 1)])
        file.torn = torn = self._rng.choice(parts)
        file.replaced = False
        file.path.write_bytes(torn)
        if self._rng.random() < 0.3:
            self._world.later(self._rng.uniform(0.0, 1.0), lambda: self._replace(file))

        def healed() -> bool:
            if read_or_none(file.path) != file.written:
                return False
            file.torn = None
            if torn.strip(b"\0") and not file.replaced and not team.is_somewhere(torn):
                fault.lost = f"the torn content of {file.path.name} is nowhere: {torn!r}"
            return True

        fault = self._fault("file torn", f"{file.path.name} of {team.name}", healed)
        return fault

    def _replace(self, file: StateFile) -> None:
        try:
            file.write()
            file.replaced = True
        except OSError:  # no room: its writer tries again
            self._world.later(0.5, lambda: self._replace(file))

    def file_replaced(self) -> Fault | None:
        """Its writer renames a new content to it."""
        chosen = self._file(lambda team, file: True)
        if chosen is None or self._world.disk_full:
            return None
        team, file = chosen
        try:
            data = file.write()
        except OSError:
            return None
        file.replaced = True
        return self._fault(
            "file replaced", f"{file.path.name} of {team.name}",
            lambda: file.written != data or (read_or_none(file.path) == data and team.has_copy(data)),
        )  # fmt: skip

    # -- several processes at once ---------------------------------------------------------------------------------

    def claimed_by_several(self) -> Fault | None:
        """Several agents claim one task at the same time: one gets it."""
        team = self._rng.choice(self._world.teams)
        idle = [w for w in team.workers if w.alive and not w.stopped and not w.reserved and w.task is None]
        idle = [w for w in idle if w.command is None][: self._rng.randint(2, 4)]
        free = [task for task in team.tasks if not task.reported and task.is_free]
        free = [task for task in free if all(worker.task is not task for worker in self._world.workers)]
        if len(idle) < 2 or not free:
            return None
        task = self._rng.choice(free)
        for worker in idle:
            worker.task = task
            self._world.ask(worker, "claim")
        claims = [(worker, worker.command) for worker in idle]

        def healed() -> bool:
            if not all(command is None or command.over() for _, command in claims):
                return False
            winners = [worker for worker, command in claims if command is not None and command.code == 0]
            if len(winners) > 1:
                fault.lost = f"{task.ident} was given to {', '.join(worker.name for worker in winners)}"
            return bool(winners) or self._oracle.is_settled(task)

        fault = self._fault("claimed by several", f"{task.ident} by {len(idle)}", healed)
        return fault

    def done_by_several(self) -> Fault | None:
        """A task is reported by its owner, and at the same time by others with wrong tokens."""
        holders = [w for w in self._world.workers if w.alive and not w.stopped and w.task is not None and w.task.token]
        holders = [w for w in holders if w.command is None and not w.reserved and w.task and not w.task.uncertain]
        if not holders:
            return None
        worker = self._rng.choice(holders)
        task, team = worker.task, worker.team
        assert task is not None
        token = task.token or 0
        wrong = [("no-agent", token), (worker.name, token - 1), ("dev-0", token + 1)]
        words = [("task", "done", task.ident, "--owner", owner, "--token", str(t)) for owner, t in wrong]
        others = [self._world.command(team, *each) for each in words[:2]]
        self._world.ask(worker, "done")
        others.append(self._world.command(team, *words[2]))

        def healed() -> bool:
            if not all(command.over() for command in others) or (worker.command is not None and worker.alive):
                return False
            if any(command.code == 0 for command in others):
                fault.lost = f"{task.ident} was completed by an agent that did not have it"
            return self._oracle.is_settled(task)

        fault = self._fault("done by several", task.ident, healed)
        return fault

    def command_killed(self) -> Fault | None:
        """A command of the supervisor is killed in the middle: its caller does not know how it ended."""
        callers = [worker for worker in self._world.workers if worker.command is not None and worker.task is not None]
        if not callers:
            worker = self._victim(lambda w: w.task is None and w.command is None)
            free = [t for t in worker.team.tasks if not t.reported and t.is_free] if worker else []
            free = [task for task in free if all(w.task is not task for w in self._world.workers)]
            if worker is None or not free:
                return None
            worker.task = self._rng.choice(free)
            self._world.ask(worker, "claim")
            time.sleep(self._rng.uniform(0.0, 0.15))
            callers = [worker]
        worker = self._rng.choice(callers)
        task, command = worker.task, worker.command
        assert task is not None
        assert command is not None
        command.child.kill()
        return self._fault("command killed", f"{worker.asked} of {task.ident}", lambda: command.over() and
                           not (worker.alive and worker.task is task and task.uncertain) and
                           self._oracle.is_settled(task))  # fmt: skip

    def lease_by_several(self) -> Fault | None:
        """Several owners acquire one lease at the same time, and its holder lets it run out.

        They are no agents, so nothing but the deadline releases it. On a busy machine the next one may acquire it after
        that.
        """
        team = self._rng.choice(self._world.teams)
        owners = [f"owner-{number}" for number in range(3)]
        resource = f"soak/{self._rng.randrange(10**9)}.py"
        file = team.paths.locks / lease_file(resource)
        commands = [
            self._world.command(team, "lease", "acquire", resource, "--owner", owner, "--ttl", str(LEASE_S))
            for owner in owners
        ]

        def healed() -> bool:
            if not all(command.over() for command in commands):
                return False
            documents = [command.document() for command in commands if command.code == 0]
            ends = sorted(from_iso(str(document["expires_at"])) for document in documents)
            if any((later - earlier).total_seconds() < LEASE_S - 1 for earlier, later in pairwise(ends)):
                fault.lost = f"the lease on {resource} was given twice"
            return not file.exists()

        fault = self._fault("lease by several", f"{resource} by {len(owners)}", healed)
        return fault

    def lock_left(self) -> Fault | None:
        """A git is killed that holds the lock of the index."""
        team = self._rng.choice(self._world.teams)
        lock = team.project / ".git" / "index.lock"
        if lock.exists() or self._daemon_fault or self._world.disk_full:
            return None
        git = subprocess.Popen(
            ["git", "update-index", "--stdin"], cwd=team.project, env=self._world.environment, stdin=subprocess.PIPE
        )
        self._commands.append(git)
        deadline_s = time.monotonic() + 5.0
        while f"{git.pid}" not in (read_or_none(team.paths.seen_locks) or b"").decode():
            time.sleep(0.02)
            if time.monotonic() > deadline_s:
                git.communicate()
                return None  # never seen with the lock: then it has to stay
        os.kill(git.pid, signal.SIGKILL)
        git.communicate()
        return self._fault("lock left by git", team.name, lambda: not lock.exists())
