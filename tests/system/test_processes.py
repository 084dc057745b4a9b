"""Processes: identity, liveness, leftovers, and the kill gate through which every signal goes.

One suite for both kernels, with real processes throughout.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from support.processes import Children, watching
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.models import Liveness, ProcessId
from yolo_supervisor.system import processes as module
from yolo_supervisor.system.death_watch import DeathWatch, watchable
from yolo_supervisor.system.portable import PsutilBackend
from yolo_supervisor.system.process_backend import file_id
from yolo_supervisor.system.process_table import Sweep, Tree
from yolo_supervisor.system.processes import Ending, Leftovers, Processes, Refusal, RefusalCode
from yolo_supervisor.system.procfs import ProcfsBackend

ALIVE, DEAD, UNKNOWN = Liveness.ALIVE, Liveness.DEAD, Liveness.UNKNOWN

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes of other users")


@pytest.fixture(params=[pytest.param(ProcfsBackend, marks=on_linux), PsutilBackend], ids=["linux", "psutil"])
def processes(request: pytest.FixtureRequest) -> Processes:
    return Processes(request.param())


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('deaf')"

PRELUDE = """
import os, signal, sys

def live():
    while os.read(int(sys.argv[1]), 1):
        pass
    os._exit(0)

def say(name):
    os.write(1, f"{name} {os.getpid()}\\n".encode())  # one write, so that lines do not mix

def born(name, life=live, session=False):
    if os.fork() == 0:
        if session:
            os.setsid()
        say(name)
        life()

print("ready", flush=True)
"""


class Family:
    """Starts processes with descendants. Even orphans end with the test, when it closes a pipe."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._lifeline, self._end = os.pipe()

    def start(self, body: str, *names: str) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
        """A process that runs ``body`` and lives on, and the pids of the processes that print ``names``."""
        program = f"{PRELUDE}\n{body}\nlive()"
        child = self._children.python(program, str(self._lifeline), pass_fds=(self._lifeline,))
        return child, dict(self.hear(child) for _ in names)

    def hear(self, child: subprocess.Popen[bytes]) -> tuple[str, int]:
        """The next name that is printed, with its pid."""
        assert child.stdout is not None
        name, pid = child.stdout.readline().split()
        return name.decode(), int(pid)

    def close(self) -> None:
        os.close(self._end)
        os.close(self._lifeline)


@pytest.fixture
def family(children: Children) -> Iterator[Family]:
    started = Family(children)
    yield started
    started.close()


def known(processes: Processes, pid: int) -> ProcessId:
    process = processes.identify(pid)
    assert process is not None, f"{pid} is not identified"
    return process


def tree_of(processes: Processes, process: ProcessId) -> Tree:
    return processes.sweep().tree(process)


def ended(child: subprocess.Popen[bytes]) -> int:
    child.kill()
    return child.wait(LIMIT_S)


def answering(*answers: str | None) -> Callable[[], Awaitable[str | None]]:
    """A source of objections, one for each question."""
    ahead = list(answers)

    async def holds() -> str | None:
        return ahead.pop(0)

    return holds


def meanwhile(*calls: Callable[[], object]) -> Callable[[], Awaitable[str | None]]:
    """A source of no objections that calls one of ``calls`` at each question."""
    ahead = list(calls)

    async def holds() -> None:
        ahead.pop(0)()

    return holds


async def agree() -> None:
    """Never object."""


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let every system call that needs a new descriptor fail meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- identity ---------------------------------------------------------------------------------------------------


def test_a_process_has_one_identity_as_long_as_it_lives(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")

    process = known(processes, child.pid)

    assert (child.pid, processes.boot) == (process.pid, process.boot)
    assert known(processes, child.pid) == process


def test_a_process_that_ended_has_no_identity_reaped_or_not(processes: Processes, children: Children) -> None:
    child = children.start("true")

    wait_until(lambda: processes.identify(child.pid) is None, "the zombie to be no process any more")
    child.wait()

    assert processes.identify(child.pid) is None


@pytest.mark.parametrize("pid", [0, 2**22 + 1, 2**31, 2**63])
def test_an_impossible_pid_names_no_process(processes: Processes, pid: int) -> None:
    assert processes.identify(pid) is None


@on_linux
def test_a_process_name_that_mimics_kernel_syntax_is_parsed_correctly(processes: Processes, family: Family) -> None:
    child, _ = family.start("open('/proc/self/comm', 'w').write('a) Z 1 (b'); say('set')", "set")

    facts = processes.backend.facts(child.pid)

    assert facts is not None
    assert (os.getpid(), False, "a) Z 1 (b") == (facts.parent, facts.zombie, facts.comm)


def test_a_process_is_known_by_its_words_folder_user_and_surroundings(
    processes: Processes, children: Children, tmp_path: Path
) -> None:
    words, surroundings = ["--flag", "two words", "ünï", ""], {"ROLE": "dev=1", "EMPTY": ""}
    program = "print('ready', flush=True); import time; time.sleep(600)"
    child = children.python(program, *words, env=surroundings, cwd=tmp_path)
    backend = processes.backend

    assert [sys.executable, "-c", program, *words] == backend.argv(child.pid)
    assert surroundings == backend.environment(child.pid)
    assert str(tmp_path.resolve()) == backend.folder(child.pid)
    assert os.path.samefile(sys.executable, backend.executable(child.pid))
    assert os.geteuid() == backend.owner(child.pid)


@on_linux
@pytest.mark.parametrize(("mode", "writes"), [("r", False), ("a", True), ("r+", True)])
def test_a_process_writes_to_a_file_that_it_has_open_for_writing(
    processes: Processes, children: Children, tmp_path: Path, mode: str, writes: bool
) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.touch()
    other.touch()
    child = children.python(
        f"file = open({str(path)!r}, {mode!r})\nprint('ready', flush=True)\nimport time\ntime.sleep(600)"
    )

    assert processes.backend.writes_to(child.pid, path, file_id(path)) is writes
    assert not processes.backend.writes_to(child.pid, other, file_id(other))


@on_linux
def test_a_descriptor_whose_number_is_given_again_is_not_taken_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    is_writable = ProcfsBackend._is_writable

    def opened_meanwhile(backend: ProcfsBackend, pid: int, name: str) -> bool:
        other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
        os.dup2(other, fd)
        os.close(other)
        return is_writable(backend, pid, name)

    monkeypatch.setattr(ProcfsBackend, "_is_writable", opened_meanwhile)

    assert not ProcfsBackend().writes_to(os.getpid(), path, file_id(path))
    os.close(fd)


@on_linux
def test_what_the_kernel_reports_changes_of_to_a_process_is_known(children: Children, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()

    child = children.python(watching(watched))

    assert ProcfsBackend().watched(child.pid) == {file_id(watched)}
    assert ProcfsBackend().watched(children.start("sleep", "600").pid) == frozenset()


def test_a_file_of_a_process_is_known_by_device_and_inode(
    processes: Processes, children: Children, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "file").touch()
    child = children.start("sleep", "600", cwd=tmp_path / "link")
    backend, file = processes.backend, tmp_path / "folder" / "file"

    assert [backend.file_id(child.pid, name) for name in ("file", "../link/file", str(file))] == [file_id(file)] * 3
    folders = backend.folder_ids(child.pid)
    assert folders[:2] == [file_id(tmp_path / "folder"), file_id(tmp_path)]
    assert folders[-1] == file_id("/")


def test_a_start_time_can_be_compared_with_the_time_of_a_file(children: Children, tmp_path: Path) -> None:
    backend, tick_s = ProcfsBackend(), 0.02
    (tmp_path / "before").touch()
    child = children.start("sleep", "600")
    (tmp_path / "after").touch()

    facts = backend.facts(child.pid)

    assert facts is not None
    before, after = ((tmp_path / name).stat().st_mtime for name in ("before", "after"))
    assert before - tick_s <= backend.started_at(facts.started) <= after + tick_s


@on_linux
def test_the_clients_spelling_of_a_start_time_on_linux_is_the_kernels_own(children: Children) -> None:
    child = children.start("sleep", "600")
    field = Path(f"/proc/{child.pid}/stat").read_text().split()[21]

    process = known(Processes(ProcfsBackend()), child.pid)

    assert ProcfsBackend().same_start(process.started, field)
    assert not ProcfsBackend().same_start(process.started, str(int(field) + 1))


def test_the_clients_spelling_of_a_start_time_elsewhere_is_a_date() -> None:
    backend = PsutilBackend()
    noon_s = int(time.mktime((2026, 3, 7, 12, 0, 0, 0, 0, -1)))

    assert backend.same_start(noon_s * 100 + 42, "Sat Mar  7 12:00:00 2026")
    assert not backend.same_start(noon_s * 100 + 42, "Sat Mar  7 12:00:02 2026")
    assert not backend.same_start(noon_s * 100 + 42, "yesterday")


# -- liveness ---------------------------------------------------------------------------------------------------


def test_a_process_is_alive_until_it_ends(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")
    process = known(processes, child.pid)

    assert processes.liveness(process) is ALIVE
    ended(child)
    assert processes.liveness(process) is DEAD


def test_a_zombie_is_dead(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")
    process = known(processes, child.pid)

    child.kill()

    wait_until(lambda: processes.liveness(process) is DEAD, "the zombie to count as dead")
    assert child.returncode is None, "it was reaped, so this was no zombie"


def test_a_stopped_process_is_alive(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")
    process = known(processes, child.pid)

    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)

    assert processes.liveness(process) is ALIVE


@on_linux
def test_a_process_whose_first_thread_has_ended_is_alive(family: Family) -> None:
    processes = Processes(ProcfsBackend())
    child, _ = family.start(
        "import ctypes, threading; threading.Thread(target=live).start(); ctypes.CDLL(None).pthread_exit(None)"
    )
    process = known(processes, child.pid)

    wait_until(lambda: ") Z" in Path(f"/proc/{child.pid}/stat").read_text(), "the first thread to end")

    assert processes.liveness(process) is ALIVE
    assert known(processes, child.pid) == process


def test_a_process_that_started_at_another_time_is_not_the_one(processes: Processes, children: Children) -> None:
    process = known(processes, children.start("sleep", "600").pid)

    assert processes.liveness(ProcessId(process.pid, process.started - 1, process.boot)) is DEAD


def test_no_handle_opens_for_an_ended_or_reused_pid(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")
    process = known(processes, child.pid)

    assert processes.backend.hold(ProcessId(process.pid, process.started - 1, process.boot)) is None
    child.kill()
    wait_until(lambda: processes.backend.hold(process) is None, "the zombie to be no process any more")
    child.wait()
    assert processes.backend.hold(process) is None


@pytest.mark.parametrize(
    ("machine", "boot", "namespace", "state"),
    [
        (None, "another boot", None, DEAD),
        (None, "another boot", "another namespace", UNKNOWN),
        (None, None, "another namespace", UNKNOWN),
        ("another machine", None, None, UNKNOWN),
        ("another machine", "another boot", "another namespace", UNKNOWN),
    ],
)
def test_only_a_new_start_of_this_machine_proves_a_death_elsewhere(
    processes: Processes, machine: str | None, boot: str | None, namespace: str | None, state: Liveness
) -> None:
    parts = zip((machine, boot, namespace), processes.boot.split("/"), strict=True)
    elsewhere = "/".join(other or ours for other, ours in parts)

    assert processes.liveness(ProcessId(4242, 1, elsewhere)) is state


@pytest.mark.parametrize("boot", ["", "/", "///", "nonsense"])
def test_a_process_of_an_invalid_boot_is_unknown(processes: Processes, boot: str) -> None:
    assert processes.liveness(ProcessId(4242, 1, boot)) is UNKNOWN


@on_linux
def test_nothing_is_concluded_from_a_missing_answer_of_the_kernel(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")
    process = known(processes, child.pid)

    with no_descriptor_left():
        assert processes.liveness(process) is UNKNOWN
        assert processes.identify(child.pid) is None
        assert "could not be proven" in str(processes.refusal(process))


def test_a_clock_set_right_by_a_second_is_no_new_start_of_the_machine(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.boot_time", lambda: 1_790_000_009.8)
    process = known(Processes(PsutilBackend()), children.start("sleep", "600").pid)

    monkeypatch.setattr("psutil.boot_time", lambda: 1_790_000_010.8)

    assert Processes(PsutilBackend()).liveness(process) is not DEAD


# -- leftovers --------------------------------------------------------------------------------------------------


def test_the_children_of_a_dead_agent_that_live_on_are_left_over_with_all_below(
    processes: Processes, family: Family
) -> None:
    child, pids = family.start("""
born("tool", lambda: [born("below"), live()], session=True)
born("server")
""", "tool", "below", "server")  # fmt: skip
    agent = known(processes, child.pid)
    tree = tree_of(processes, agent)
    roots = {known(processes, pids["tool"]), known(processes, pids["server"])}

    ended(child)
    left = processes.leftovers(agent, tree)

    assert set(pids.values()) == {process.pid for process, _ in tree}
    assert roots == set(left.roots)
    assert left.uncertain == ()


def test_a_process_whose_parent_ended_before_is_uncertain(processes: Processes, family: Family) -> None:
    child, pids = family.start('born("shell", lambda: [born("service"), live()])', "shell", "service")
    agent, service = known(processes, child.pid), known(processes, pids["service"])
    tree = tree_of(processes, agent)

    os.kill(pids["shell"], signal.SIGKILL)
    wait_until(lambda: processes.identify(pids["shell"]) is None, "the shell to end")
    ended(child)

    assert processes.leftovers(agent, tree) == Leftovers(roots=(), uncertain=(service,))


def test_ended_processes_are_not_survivors(processes: Processes, family: Family) -> None:
    child, pids = family.start('born("tool")', "tool")
    agent = known(processes, child.pid)
    tree = tree_of(processes, agent)

    os.kill(pids["tool"], signal.SIGKILL)
    wait_until(lambda: processes.identify(pids["tool"]) is None, "the tool to end")
    ended(child)

    assert processes.leftovers(agent, tree) == Leftovers()


def test_parents_come_before_children_in_a_tree(processes: Processes, family: Family) -> None:
    child, pids = family.start(
        'born("one", lambda: [born("two", lambda: [born("three"), live()]), live()])', "one", "two", "three"
    )

    tree = tree_of(processes, known(processes, child.pid))

    assert [(pids["one"], child.pid), (pids["two"], pids["one"]), (pids["three"], pids["two"])] == [
        (process.pid, parent) for process, parent in tree
    ]


def test_a_spared_process_and_its_descendants_are_not_in_the_tree(processes: Processes, family: Family) -> None:
    child, pids = family.start('born("mate", lambda: [born("tool"), live()])\nborn("own")', "mate", "tool", "own")
    mate = known(processes, pids["mate"])

    tree = processes.sweep().tree(known(processes, child.pid), spare=[mate])

    assert [pids["own"]] == [process.pid for process, _ in tree]


def test_a_process_that_does_not_exist_has_no_tree(processes: Processes, family: Family) -> None:
    child, _ = family.start('born("tool")', "tool")
    agent = known(processes, child.pid)

    assert tree_of(processes, ProcessId(agent.pid, agent.started - 1, agent.boot)) == ()
    assert tree_of(processes, ProcessId(agent.pid, agent.started, "another world")) == ()


# -- the gate: terminated processes ------------------------------------------------------------------------------


async def test_a_process_that_handles_sigterm_exits_by_itself(processes: Processes, family: Family) -> None:
    child, _ = family.start("signal.signal(signal.SIGTERM, lambda *_: os._exit(7)); say('set')", "set")
    process = known(processes, child.pid)

    assert await processes.terminate([process], LIMIT_S, agree) == Ending(terminated=(process,))
    assert child.wait(LIMIT_S) == 7


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(
    processes: Processes, family: Family
) -> None:
    child, _ = family.start(STUBBORN, "deaf")
    process = known(processes, child.pid)

    assert await processes.terminate([process], 0.1, agree) == Ending(killed=(process,))
    assert child.wait(LIMIT_S) == -signal.SIGKILL


async def test_a_stopped_one_is_woken_to_leave(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")
    process = known(processes, child.pid)
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)

    assert await processes.terminate([process], LIMIT_S, agree) == Ending(terminated=(process,))
    assert child.wait(LIMIT_S) == -signal.SIGTERM


async def test_the_whole_tree_is_terminated_in_any_sessions(processes: Processes, family: Family) -> None:
    child, pids = family.start("""
born("tool", lambda: [born("test", session=True), live()], session=True)
born("stubborn", lambda: [signal.signal(signal.SIGTERM, signal.SIG_IGN), born("deaf"), live()])
""", "tool", "test", "stubborn", "deaf")  # fmt: skip
    agent = known(processes, child.pid)
    tool, test, stubborn, deaf = (known(processes, pids[name]) for name in ("tool", "test", "stubborn", "deaf"))

    ending = await processes.terminate([agent], 0.5, agree)

    assert ({agent, tool, test}, {stubborn, deaf}) == (set(ending.terminated), set(ending.killed))
    assert {DEAD} == {processes.liveness(p) for p in (agent, tool, test, stubborn, deaf)}


async def test_processes_started_during_the_grace_period_are_terminated(processes: Processes, family: Family) -> None:
    child, _ = family.start("""
signal.signal(signal.SIGTERM, lambda *_: born("late", session=True))
say("set")
""", "set")  # fmt: skip
    agent = known(processes, child.pid)
    late: list[ProcessId] = []
    hear = meanwhile(lambda: None, lambda: late.append(known(processes, family.hear(child)[1])))

    ending = await processes.terminate([agent], 0.05, hear)

    assert {agent, *late} == set(ending.killed)
    assert [processes.liveness(process) for process in late] == [DEAD]


async def test_an_exit_before_the_first_signal_is_no_error(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")
    process = known(processes, child.pid)

    assert await processes.terminate([process], 0.1, meanwhile(lambda: ended(child))) == Ending()


async def test_a_process_that_ends_just_before_its_kill_counts_as_terminated(
    processes: Processes, family: Family
) -> None:
    child, _ = family.start(STUBBORN, "deaf")
    process = known(processes, child.pid)
    end = meanwhile(lambda: None, lambda: ended(child))

    assert await processes.terminate([process], 0.05, end) == Ending(terminated=(process,))


async def test_an_exit_during_an_objection_is_reported(processes: Processes, family: Family) -> None:
    child, _ = family.start(STUBBORN, "deaf")
    process = known(processes, child.pid)
    answers = [None, "a person is back"]

    async def holds() -> str | None:
        if len(answers) == 1:
            ended(child)
        return answers.pop(0)

    ending = await processes.terminate([process], 0.05, holds)

    assert ending == Ending(terminated=(process,), spared="a person is back")


async def test_survivors_are_named_and_not_signalled_again(
    processes: Processes, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = SimpleNamespace(signal=lambda number: True, over=lambda: False, close=lambda: None)
    monkeypatch.setattr(processes.backend, "hold", lambda process: hanging)
    monkeypatch.setattr(module, "VERIFY_S", 0.05)
    process = known(processes, children.start("sleep", "600").pid)
    parent = processes.identify_self()

    assert await processes.terminate([process], 0.05, agree) == Ending(survived=(process,))
    assert processes.leftovers(parent, [(process, parent.pid)]) == Leftovers()


# -- the gate: spared processes ---------------------------------------------------------------------------------


async def test_an_objection_before_the_first_signal_spares(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")

    ending = await processes.terminate([known(processes, child.pid)], 0.0, answering("a person is back"))

    assert ending == Ending(spared="a person is back")
    assert child.poll() is None


async def test_an_objection_before_the_kill_spares(processes: Processes, family: Family) -> None:
    child, pids = family.start("""
born("tool")
signal.signal(signal.SIGTERM, lambda *_: None)
say("deaf")
""", "tool", "deaf")  # fmt: skip
    agent, tool = known(processes, child.pid), known(processes, pids["tool"])

    ending = await processes.terminate([agent], 0.5, answering(None, "a person is back"))

    assert ending == Ending(terminated=(tool,), spared="a person is back")
    assert processes.liveness(agent) is ALIVE


async def test_the_subtree_of_a_spared_one_stays(processes: Processes, family: Family) -> None:
    child, pids = family.start(
        'born("mate", lambda: [born("tool", session=True), live()])\nborn("own")', "mate", "tool", "own"
    )
    agent, mate, tool, own = (known(processes, pid) for pid in (child.pid, pids["mate"], pids["tool"], pids["own"]))

    ending = await processes.terminate([agent], LIMIT_S, agree, spare=lambda: [mate])

    assert {agent, own} == set(ending.terminated)
    assert [processes.liveness(mate), processes.liveness(tool)] == [ALIVE, ALIVE]


async def test_a_root_that_is_to_be_spared_stays_with_all_below(processes: Processes, family: Family) -> None:
    child, pids = family.start('born("tool")', "tool")
    agent, tool = known(processes, child.pid), known(processes, pids["tool"])

    assert await processes.terminate([agent], 0.1, agree, spare=lambda: [agent]) == Ending()
    assert [processes.liveness(agent), processes.liveness(tool)] == [ALIVE, ALIVE]


async def test_a_process_with_another_start_time_is_never_signalled(processes: Processes, family: Family) -> None:
    child, pids = family.start('born("tool")', "tool")
    agent, tool = known(processes, child.pid), known(processes, pids["tool"])
    before = ProcessId(agent.pid, agent.started - 1, agent.boot)

    assert await processes.terminate([before], 0.1, agree) == Ending()
    assert [processes.liveness(agent), processes.liveness(tool)] == [ALIVE, ALIVE]


async def test_a_process_of_another_pid_namespace_is_refused(processes: Processes, children: Children) -> None:
    process = known(processes, children.start("sleep", "600").pid)
    namesake = ProcessId(process.pid, process.started, processes.boot + "0")

    ending = await processes.terminate([namesake], 0.1, agree)

    assert [namesake] == list(ending.refused)
    assert processes.liveness(process) is ALIVE


def test_the_supervisor_itself_is_refused(processes: Processes) -> None:
    assert "this supervisor" in str(processes.refusal(processes.identify_self()))


def test_every_ancestor_of_the_supervisor_is_refused(processes: Processes) -> None:
    ancestors, pid = [], os.getppid()
    while pid > 1:
        ancestors.append(known(processes, pid))
        facts = processes.backend.facts(pid)
        assert facts is not None
        pid = facts.parent

    refusal = Refusal(RefusalCode.ANCESTOR, "it is this supervisor, or one of its ancestors")
    assert {refusal} == {processes.refusal(each) for each in ancestors}


def test_init_is_refused(processes: Processes) -> None:
    assert "init" in str(processes.refusal(known(processes, 1)))


def test_an_ordinary_child_is_not_refused(processes: Processes, children: Children) -> None:
    assert processes.refusal(known(processes, children.start("sleep", "600").pid)) is None


async def test_a_tmux_server_is_refused(processes: Processes, children: Children, tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux here")
    server = children.start("tmux", "-D", "-S", str(tmp_path / "tmux"), "-f", "/dev/null")
    wait_until((tmp_path / "tmux").exists, "the tmux server to listen")
    process = known(processes, server.pid)

    ending = await processes.terminate([process], 0.1, agree)

    assert Ending(refused={process: Refusal(RefusalCode.TMUX, "it is a tmux server")}) == ending
    assert server.poll() is None


@on_linux
async def test_a_process_that_only_calls_itself_tmux_is_signalled(family: Family) -> None:
    processes = Processes(ProcfsBackend())
    child, pids = family.start(
        "born('below')\nopen('/proc/self/comm', 'w').write('tmux: server')\nsay('named')", "below", "named"
    )
    named, below = known(processes, child.pid), known(processes, pids["below"])

    ending = await processes.terminate([named], LIMIT_S, agree)

    assert {named, below} == {*ending.terminated}


@as_root
async def test_a_process_of_another_user_is_refused(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600", user=65534)
    process = known(processes, child.pid)

    ending = await processes.terminate([process], 0.1, agree)

    assert Ending(refused={process: Refusal(RefusalCode.OTHER_USER, "it belongs to another user")}) == ending
    assert child.poll() is None


async def test_a_process_without_a_handle_is_refused(
    processes: Processes, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hold(process: ProcessId) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(processes.backend, "hold", no_hold)
    child = children.start("sleep", "600")
    process = known(processes, child.pid)

    ending = await processes.terminate([process], 0.1, agree)

    refusal = Refusal(RefusalCode.NO_HANDLE, "it could not be opened (Too many open files)")
    assert Ending(refused={process: refusal}) == ending
    assert child.poll() is None


@on_linux
async def test_while_the_kernel_does_not_answer_nothing_is_signalled(processes: Processes, children: Children) -> None:
    child = children.start("sleep", "600")
    process = known(processes, child.pid)

    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        await processes.terminate([process], 0.1, agree)

    assert child.poll() is None


# -- reused pids ----------------------------------------------------------------------------------------------------


def namesake(children: Children, pid: int) -> subprocess.Popen[bytes]:
    """Another process that gets this very pid: root may choose the next one."""
    begun_s = time.monotonic()
    wait_until(lambda: time.monotonic() - begun_s > 0.03, "the clock to move on: start times are in ticks")
    for _ in range(200):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            pytest.skip("the next pid cannot be chosen here")
        bystander = children.start("sleep", "600")
        if bystander.pid == pid:
            return bystander
        ended(bystander)
    pytest.skip("another process was always quicker to get the pid")


async def test_a_process_that_reuses_the_recorded_pid_survives(processes: Processes, children: Children) -> None:
    victim = children.start("sleep", "600")
    recorded = known(processes, victim.pid)
    ended(victim)
    bystander = namesake(children, recorded.pid)

    assert processes.liveness(recorded) is DEAD
    assert await processes.terminate([recorded], 0.1, agree) == Ending()
    assert bystander.poll() is None


def test_a_process_that_reuses_a_childs_pid_is_no_leftover(processes: Processes, children: Children) -> None:
    victim, agent = children.start("sleep", "600"), processes.identify_self()
    tree = [(known(processes, victim.pid), agent.pid)]
    ended(victim)
    namesake(children, victim.pid)

    assert processes.leftovers(agent, tree) == Leftovers()


def test_an_open_handle_never_refers_to_a_reused_pid(processes: Processes, children: Children) -> None:
    victim = children.start("sleep", "600")
    hold = processes.backend.hold(known(processes, victim.pid))
    assert hold is not None
    ended(victim)
    bystander = namesake(children, victim.pid)

    assert hold.over()
    assert not hold.signal(signal.SIGKILL)
    assert bystander.poll() is None
    hold.close()


async def test_a_process_whose_parent_is_another_one_now_is_not_signalled(
    processes: Processes, family: Family, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, pids = family.start('born("tool", session=True)', "tool")
    agent, tool = known(processes, child.pid), known(processes, pids["tool"])
    bystander = known(processes, children.start("sleep", "600").pid)
    sweep = processes.sweep

    def sweep_with_an_old_parent() -> Sweep:
        """The bystander was read while a process that has ended since had the agent's pid."""
        now = sweep()
        return Sweep(now.boot, {**now.facts, bystander.pid: replace(now.facts[bystander.pid], parent=agent.pid)})

    monkeypatch.setattr(processes, "sweep", sweep_with_an_old_parent)
    assert bystander in [process for process, _ in processes.sweep().tree(agent)]

    ending = await processes.terminate([agent], LIMIT_S, agree)

    assert ({agent, tool}, (bystander,)) == ({*ending.terminated}, ending.unproven)
    assert processes.liveness(bystander) is ALIVE


async def test_the_subtree_of_an_unproven_process_is_not_signalled(
    processes: Processes, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = known(processes, family.start("say('set')", "set")[0].pid)
    other, pids = family.start('born("below")', "below")
    bystander, below = known(processes, other.pid), known(processes, pids["below"])
    sweep = processes.sweep

    def sweep_with_an_old_parent() -> Sweep:
        now = sweep()
        return Sweep(now.boot, {**now.facts, bystander.pid: replace(now.facts[bystander.pid], parent=agent.pid)})

    monkeypatch.setattr(processes, "sweep", sweep_with_an_old_parent)

    ending = await processes.terminate([agent], LIMIT_S, agree)

    assert (agent,) == ending.terminated
    assert {bystander, below} == {*ending.unproven}


# -- death watches ------------------------------------------------------------------------------------------------


@pytest.fixture
async def watch() -> AsyncIterator[DeathWatch]:
    if sys.platform != "linux":
        pytest.skip("needs pidfds")
    begun = DeathWatch(ProcfsBackend())
    yield begun
    with contextlib.suppress(ValueError):
        begun.close()


def sleepers(children: Children, count: int) -> dict[ProcessId, subprocess.Popen[bytes]]:
    processes = Processes(ProcfsBackend())
    return {known(processes, child.pid): child for child in [children.start("sleep", "600") for _ in range(count)]}


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_an_exit_wakes_the_watch_and_is_reported_once(watch: DeathWatch, children: Children) -> None:
    (one, child), (other, _) = sleepers(children, 2).items()
    watch.add(one)
    watch.add(other)
    assert watch.ended() == []

    child.kill()
    with anyio.fail_after(LIMIT_S):
        await watch.wait()

    assert [one] == watch.ended()
    assert watch.ended() == []
    assert (watch.lives(one), watch.lives(other)) == (False, True)


async def test_simultaneous_exits_are_all_reported(watch: DeathWatch, children: Children) -> None:
    watched = sleepers(children, 60)
    for process in watched:
        watch.add(process)
        watch.add(process)
    assert len(watch) == 60

    for child in watched.values():
        child.kill()
    reported: list[ProcessId] = []
    with anyio.fail_after(LIMIT_S):
        while len(reported) < 60:
            await watch.wait()
            reported += watch.ended()

    assert sorted(watched) == sorted(reported)
    assert len(watch) == 0


async def test_a_process_that_has_ended_is_not_watched(watch: DeathWatch, children: Children) -> None:
    ((process, child),) = sleepers(children, 1).items()
    ended(child)

    watch.add(process)

    assert (len(watch), watch.lives(process)) == (0, False)


async def test_a_namesake_is_not_watched_in_its_place(watch: DeathWatch, children: Children) -> None:
    ((process, _),) = sleepers(children, 1).items()

    watch.add(ProcessId(process.pid, process.started - 1, process.boot))

    assert len(watch) == 0


async def test_discarded_processes_are_not_reported(watch: DeathWatch, children: Children) -> None:
    ((process, child),) = sleepers(children, 1).items()
    before = open_descriptors()
    watch.add(process)

    watch.discard(process)
    watch.discard(process)
    ended(child)

    assert watch.ended() == []
    assert before == open_descriptors()


async def test_a_process_that_has_ended_can_be_discarded(watch: DeathWatch, children: Children) -> None:
    (one, child), (other, second) = sleepers(children, 2).items()
    watch.add(one)
    watch.add(other)
    ended(child)
    ended(second)

    watch.discard(one)

    assert [other] == watch.ended()


@on_linux
async def test_a_closed_watch_holds_no_descriptor(children: Children) -> None:
    watched = sleepers(children, 5)
    before = open_descriptors()
    watch = DeathWatch(ProcfsBackend())
    for process in watched:
        watch.add(process)
    assert before < open_descriptors()

    watch.close()

    assert (0, before) == (len(watch), open_descriptors())


async def test_a_watch_may_be_closed_twice(watch: DeathWatch) -> None:
    watch.close()
    watch.close()


async def test_half_of_the_descriptors_are_kept_and_an_unwatched_agent_gets_one_that_becomes_free(
    watch: DeathWatch, children: Children
) -> None:
    watched = list(sleepers(children, 40))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    half = [number for number in range(1000) if number not in taken][20]
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * half, hard))
    try:
        for process in watched:
            watch.add(process)
        assert 15 < len(watch) <= 21
        assert watch.left_out == {process for process in watched if not watch.lives(process)}
        free, left_out = next(p for p in watched if watch.lives(p)), watched[-1]

        watch.discard(free)
        watch.add(left_out)

        assert (watch.lives(free), watch.lives(left_out), left_out in watch.left_out) == (False, True, False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_than_half_of_few_descriptors_are_left_for_other_uses() -> None:
    assert [watchable(limit) for limit in (20, 40, 64, 1024)] == [-12, 8, 32, 512]


async def test_with_no_descriptor_left_nothing_is_watched(watch: DeathWatch, children: Children) -> None:
    ((process, _),) = sleepers(children, 1).items()

    with no_descriptor_left():
        watch.add(process)

    assert not watch.lives(process)


def test_without_pidfds_nothing_is_watched(children: Children) -> None:
    backend = PsutilBackend()
    watch = DeathWatch(backend)

    watch.add(known(Processes(backend), children.start("sleep", "600").pid))

    assert (len(watch), watch.ended()) == (0, [])
