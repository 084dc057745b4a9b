"""A machine in virtual time, and a supervisor on it: the parts that simulations share.

The supervisor is the real one, with its loop, store and journal on a real disk. The processes of the machine are made
up and its time is virtual, so that half an hour takes a second and a seed repeats a whole life.
"""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import anyio
import pytest

from support.disks import use_disk
from yolo_supervisor.actions.state import DropPids
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import ProcessId
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.system.process_backend import FileId, ProcessFacts, file_id
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.procfs import PidfdHandle
from yolo_supervisor.system.tmux import Tmux
from yolo_supervisor.watchers.leases import LeasesWatcher

BOOT = "machine/boot/1"


class Worker(Protocol):
    """The agent that a process is, or works for."""

    process: Process
    known: bool
    """Whether a supervisor has had the time to see it."""
    forgotten: bool
    """Whether a person has had it forgotten."""

    @property
    def alive(self) -> bool: ...
    @property
    def hangs(self) -> bool: ...


class SimulatedWorld(Protocol):
    """The parts of a simulated world that the supervisor meets."""

    config: Config
    supervised_s: float
    """Until when it was supervised for certain."""

    @property
    def time(self) -> Time: ...
    @property
    def machine(self) -> Machine: ...
    @property
    def tmux(self) -> Tmux: ...
    @property
    def home(self) -> Path: ...
    @property
    def project(self) -> Path: ...
    def stamp(self, path: Path) -> None: ...
    def wrong(self, text: str) -> None: ...
    def let_loose(self) -> None: ...


# -- time ---------------------------------------------------------------------------------------------------------


class Time:
    """Virtual time: it stands while anything happens, and flies while everybody waits. In place of ``time``, too."""

    def __init__(self) -> None:
        self.s = 1000.0
        self.wall_s = 1_577_836_800.0
        """The offset of the wall clock from the monotonic one."""

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self.s

    def time(self) -> float:
        return self.s + self.wall_s

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.time(), UTC)

    def loop(self) -> asyncio.AbstractEventLoop:
        """An event loop that lives in this time."""
        time = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                ready = super().select(0)
                time.s += timeout if timeout and not ready else 0.0
                return ready

        class Loop(asyncio.SelectorEventLoop):
            def time(self) -> float:
                return time.s

        return Loop(Selector())


# -- the machine --------------------------------------------------------------------------------------------------

Kind = Literal["agent", "tool", "stranger"]
Ears = Literal["good", "deaf", "dead"]
"""Whether a process leaves when asked to, only when killed, or not even then."""
EARS: tuple[Ears, ...] = ("good", "deaf", "dead")


@dataclass(eq=False)
class Process:
    pid: int
    parent: int
    started: int
    argv: list[str]
    kind: Kind
    born_s: float
    shown_s: float = 0.0
    """Since when nothing hides it."""
    ears: Ears = "good"
    worker: Worker | None = None
    """The agent that it is, or that it works for."""
    background: bool = False
    """Orphaned while its agent lived."""
    known: bool = False
    doomed: bool = False
    """It has to go, since its agent is dead."""
    loose: bool = False
    """Its parent is gone too: who comes now cannot know any more where it belongs."""
    over: bool = False
    hangs_s: float | None = None
    """Since when its processor time stands still, and that of all that works for it."""
    heard_s: float = 0.0
    """When last something that works for it began or ended, or itself went on."""
    holds: list[int] = field(default_factory=list)
    boot: str = BOOT
    session: int = 0
    """The pid of its session's leader, where that matters."""
    watches: list[Path] = field(default_factory=list)
    """The folders of which the kernel reports changes to it."""
    stopped: bool = False
    """Whether it is suspended."""
    idles: bool = False
    """Whether it uses no processor time."""
    status: int | None = None
    """The wait status of its end, where the kernel tells."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> ProcessId:
        return ProcessId(self.pid, self.started, self.boot)


class Hold:
    """A handle as it is where there are no descriptors for processes."""

    def __init__(self, machine: Machine, process: Process) -> None:
        self._machine, self._process = machine, process

    def signal(self, number: int) -> bool:
        return self._machine.signalled(self._process, number)

    def over(self) -> bool:
        return self._process.over

    def close(self) -> None:
        pass


class Pidfd(PidfdHandle):
    """A handle that can be waited for."""

    def __init__(self, machine: Machine, process: Process) -> None:
        super().__init__(os.eventfd(0))
        self._machine, self._process = machine, process
        process.holds.append(self.fd)

    def signal(self, number: int) -> bool:
        return self._machine.signalled(self._process, number)

    def exit(self) -> int | None:
        return self._process.status

    def close(self) -> None:
        self._process.holds.remove(self.fd)
        super().close()


class Machine:
    """A kernel with made-up processes. Pids are few, and soon given out again."""

    def __init__(self, time: Time, pidfds: bool, home: Path, project: Path, wrong: Callable[[str], None]) -> None:
        self._time = time
        self._wrong = wrong
        self._handle: Callable[[Machine, Process], Hold | Pidfd] = Pidfd if pidfds else Hold
        self._home, self._project = home, project
        self._newest = 100
        self.table: dict[int, Process] = {}
        self.boot_id = BOOT
        self.mute: set[int] = set()
        """Pids of which it does not tell the command line: no file may be opened now, say."""
        for pid, parent in ((1, 0), (os.getpid(), 1)):
            self.table[pid] = Process(pid, parent, 1, ["init"], "stranger", time.s)

    def start(self, argv: list[str], kind: Kind, parent: int = 1, pid: int | None = None, **more: Any) -> Process:
        if pid is None:
            pid = next(n for n in self._pids_from(self._newest + 1) if n not in self.table)
        self._newest = pid
        more = {"boot": self.boot_id, **more}
        process = Process(pid, parent, int(self._time.s * 100), argv, kind, self._time.s, **more)
        self.table[pid] = process
        self._stir(process)
        return process

    def _stir(self, process: Process) -> None:
        if process.worker is not None:
            process.worker.process.heard_s = self._time.s

    def _pids_from(self, first: int) -> Iterator[int]:
        yield from range(first, 400)
        yield from range(100, first)

    def children(self, process: Process) -> list[Process]:
        return [child for child in self.table.values() if child.parent == process.pid]

    def end(self, process: Process, reaped: bool = True, status: int | None = None) -> None:
        """The process is over, by itself or not; its children are init's now."""
        process.status = status
        for child in self.children(process):
            child.parent = 1
            child.loose |= process.kind == "tool"
        process.over = True
        self._stir(process)
        for fd in process.holds:
            os.eventfd_write(fd, 1)
        if reaped:
            self.reap(process)

    def reap(self, process: Process) -> None:
        if self.table.get(process.pid) is process:
            del self.table[process.pid]

    def descendants(self, process: Process) -> list[Process]:
        return [each for child in self.children(process) for each in (child, *self.descendants(child))]

    def signalled(self, process: Process, number: int) -> bool:
        if process.over:
            return False
        worker = process.worker
        if process.kind != "tool" or process.background or worker is None or worker.alive:
            self._wrong(f"signal {number} to {process}")
        if process.ears == "good" or (process.ears == "deaf" and number == signal.SIGKILL):
            self.end(process)
        return True

    # what the supervisor asks of it

    def boot(self) -> str:
        return self.boot_id

    def facts(self, pid: int) -> ProcessFacts | None:
        found = self.table.get(pid)
        if found is None:
            return None
        hangs_s = found.worker.process.hangs_s if found.worker else None
        used = int((self._time.s if hangs_s is None else hangs_s) * 100)  # all others are at work all the time
        return ProcessFacts(
            pid, found.parent, found.started, found.over, Path(found.argv[0]).name, 0 if found.idles else used,
            session=found.session, stopped=found.stopped,
        )  # fmt: skip

    def pids(self) -> list[int]:
        return list(self.table)

    def started_at(self, started: int) -> float:
        return started / 100 + self._time.wall_s

    def same_start(self, started: int, text: str) -> bool:
        return text == str(started)

    def owner(self, pid: int) -> int:
        return os.geteuid()

    def argv(self, pid: int) -> list[str]:
        if pid in self.mute:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._running(pid).argv

    def words(self, pid: int) -> list[bytes]:
        return [word.encode() for word in self.argv(pid)]

    def environment(self, pid: int) -> dict[str, str]:
        return {"HOME": str(self._home), **self._running(pid).environment}

    def folder(self, pid: int) -> str:
        self._running(pid)
        return str(self._project)

    def executable(self, pid: int) -> str:
        return self._running(pid).argv[0]

    def _running(self, pid: int) -> Process:
        if pid not in self.table:
            raise ProcessLookupError(pid)
        return self.table[pid]

    def hold(self, process: ProcessId) -> Hold | Pidfd | None:
        found = self.table.get(process.pid)
        return self._handle(self, found) if found and found.started == process.started and not found.over else None

    def folder_ids(self, pid: int) -> list[FileId]:
        return [file_id(self.folder(pid))]

    def file_id(self, pid: int, name: str) -> FileId:
        return file_id(Path(self.folder(pid)) / name)

    def writes_to(self, pid: int, path: Path, file: FileId) -> bool:
        return False

    def watched(self, pid: int) -> frozenset[FileId]:
        return frozenset(file_id(folder) for folder in self._running(pid).watches if folder.exists())

    def ignores(self, pid: int, number: int) -> bool:
        return False

    def listens(self, pid: int) -> bool:
        return True

    def newest(self) -> int | None:
        return self._newest

    def signal_sessions(self, sessions: Collection[int], number: int) -> tuple[int, ...]:
        inside = [p for p in self.table.values() if p.session and p.session in sessions and not p.over]
        for process in inside if number else ():
            self.signalled(process, number)
        return tuple(sorted({process.session for process in inside}))


# -- the supervisor -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of the supervisor's process."""


class MortalDisk(Disk):
    """A disk that nothing reaches any more once its user was killed, in the middle of an operation perhaps."""

    def __init__(self, stamp: Callable[[Path], None], lives: float = float("inf")) -> None:
        self.lives = lives
        """The number of operations that are left to it."""
        self._stamp = stamp

    def _live(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise Killed

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._live()
        return super().open(path, flags, mode)

    def write(self, fd: int, data: bytes) -> int:
        try:
            self._live()
        except Killed:
            if self.lives == -1:
                super().write(fd, data[: len(data) // 2])
            raise
        return super().write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        self._live()
        super().truncate(fd, size)

    def sync(self, fd: int) -> None:
        """The machine does not crash here, so there is nothing to flush for."""
        self._live()

    def rename(self, old: Path, new: Path) -> None:
        self._live()
        super().rename(old, new)
        for path in (old, new):  # a document is moved aside before it is removed
            self._stamp(path)

    def exchange(self, one: Path, other: Path) -> None:
        self._live()
        super().exchange(one, other)
        self._stamp(other)

    def link(self, old: Path, new: Path) -> None:
        self._live()
        super().link(old, new)
        self._stamp(new)

    def unlink(self, path: Path) -> None:
        self._live()
        super().unlink(path)
        self._stamp(path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._live()
        super().mkdir(path, mode)
        self._stamp(path)

    def rmdir(self, path: Path) -> None:
        self._live()
        super().rmdir(path)
        self._stamp(path)


class Supervision:
    """One life of the supervisor, wired as the daemon does it."""

    def __init__(self, world: SimulatedWorld) -> None:
        self.since_s = world.time.s
        self.disk = MortalDisk(world.stamp)
        self.over = False
        self._scope = anyio.CancelScope()
        self._world = world

    async def run(self) -> None:
        world, processes = self._world, Processes(self._world.machine)
        services = HostServices(world.time, processes, ProcessScanner(processes), world.tmux)
        runner = Runner(world.project, world.config, services, {"HOME": str(world.home)})
        use_disk(runner.store, self.disk)

        def sampled(changed: bool) -> None:
            runner.write_trees()
            if changed:
                runner.wakeups["agents"].ring()

        try:
            with self._scope:
                runner.open()
                services.scanner.sample()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(runner.run)
                    tasks.start_soon(services.scanner.run, lambda: 1.0, sampled)
        except* Killed:
            pass
        except* Exception as errors:  # noqa: BLE001 - it must never end by itself, whatever happens
            world.wrong(f"the supervisor fell over: {errors.exceptions}")
        finally:
            self.over = True
            world.supervised_s = world.time.s - 6.0  # its last look may be that old
            world.let_loose()
            runner.close()

    def kill(self) -> None:
        self.disk.lives = -1
        self._scope.cancel()

    def stop(self) -> None:
        self._scope.cancel()


def enter(world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch, pid_lock: Path) -> None:
    """From now on the world's time is the program's."""
    for name, module in list(sys.modules.items()):
        if name.startswith("yolo_supervisor.") and getattr(module, "time", None) is time:
            monkeypatch.setattr(module, "time", world.time)
    # the plugin's lock over its pids is the whole machine's: here it is the world's own
    defaults = DropPids.__init__.__kwdefaults__
    assert defaults
    monkeypatch.setitem(defaults, "pid_lock", pid_lock)
    monkeypatch.setattr(LeasesWatcher.__init__, "__defaults__", (pid_lock,))
