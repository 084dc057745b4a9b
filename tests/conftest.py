"""Fixtures, and the markers that follow from the folder of a test."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from support.budget import SOAK, TIER, budget
from support.cli import Cli, start_program, warm_program
from support.daemon import RunningDaemon, StartDaemon
from support.guard import Guard
from support.measured import rows_of
from support.processes import Children
from support.project import write_settings, write_team
from support.relay_testbed import RelayTestbed
from support.skips import is_expected
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import wait_until
from support.warm import flush_nothing
from yolo_supervisor.store.start_ledger import FILE as STARTS_FILE
from yolo_supervisor.user_dirs import own_state_dir

TESTS = Path(__file__).parent
UNEXPECTED: list[str] = []
"""Tests that were skipped for a reason that is not in ``support.skips``, each with its reason."""

GUARDS: list[Guard] = []
"""The guard of this process, if tests run in it."""
LEFTOVERS: list[str] = []
"""Processes that tests have left running."""

SLOWEST = [
    "test_faults_soak", "test_drill", "test_endurance", "test_commit_safety", "test_service", "test_kills",
    "test_complaints", "test_client_matrix", "test_real_team", "test_mcp_real", "test_control_sequences",
    "test_simulation", "test_garbage", "test_commit", "test_state_daemon", "test_exec", "test_mcp_lifecycle",
    "test_action_crashes", "test_mistakes", "test_faults", "test_crash_states",
]  # fmt: skip
"""Files with tests of many seconds: they begin first, so that no worker is left alone with one at the end."""
RUNNING_UNIT: list[str] = []
"""The test that runs now, if it is one that may not start a process."""

sys.dont_write_bytecode = False
"""Test files are rewritten and compiled when they are imported, which takes a third of a minute: once is enough."""

# A busy machine is slow, which is no failure.
settings.register_profile("tests", deadline=None, max_examples=budget(quick=25, full=100, soak=1000))
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-unexpected-skips", action="store_true", default="CI" in os.environ, help="see support/skips.py"
    )
    minutes = budget(quick=0, full=2, soak=100)
    parser.addoption("--soak-minutes", type=float, default=minutes, help="the length of the soak; 0 leaves it out")
    parser.addoption("--soak-seed", type=int, default=1, help="the seed of the soak's faults")


def pytest_configure(config: pytest.Config) -> None:
    """A shell without job control has its background jobs ignore these (so does nohup): what a test starts must not."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if sys.platform == "linux" and not runs_workers(config):
        GUARDS.append(Guard())
    sys.addaudithook(forbid_processes)
    flush_nothing()
    if hasattr(config, "workerinput") and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args[:] = map(str, in_turn(config.workerinput))
    # The tests' projects get their state folders here, never in the state directory of the user.
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="yolo-supervisor-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ.pop("XDG_STATE_HOME", ""), ignore_errors=True)


def in_turn(worker: Mapping[str, Any]) -> list[Path]:
    """All test files; each worker begins at another one, so that it finds most of the others compiled."""
    files = sorted(TESTS.rglob("test_*.py"))
    begin = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    return files[begin:] + files[:begin]


def runs_workers(config: pytest.Config) -> bool:
    """Whether this process only distributes tests to others (pytest-xdist)."""
    return not hasattr(config, "workerinput") and bool(config.getoption("numprocesses", None))


def end_leftovers(session: pytest.Session) -> None:
    """Kill what the tests of this process have left running, and fail the run for it."""
    guard = GUARDS.pop()
    if warm_program.cache_info().currsize:
        warm_program().close()
    leftovers = guard.leftovers()
    guard.close()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["leftovers"] = leftovers
    LEFTOVERS.extend(leftovers)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    LEFTOVERS.extend(getattr(node, "workeroutput", {}).get("leftovers", ()))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of the other folders for ``-m unit``."""
    of_unit_only = config.getoption("markexpr") == "unit"
    return True if of_unit_only and collection_path.parent in (TESTS / "system", TESTS / "soak") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test by the folder it lies in; a quick run leaves out the thorough ones."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in ("unit", "system", "soak"):
            item.add_marker(folder)
    minutes = config.getoption("soak_minutes")
    left_out = {
        item
        for item in items
        if (TIER == "quick" and item.get_closest_marker("thorough"))
        or (not minutes and item.get_closest_marker("soak"))
    }
    if TIER == "quick":
        left_out |= set(beyond_samples(items))
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.timeout(minutes * 60 + 600))
    items.sort(
        key=lambda item: (SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST), item.path)
    )


def beyond_samples(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """The cases of parametrized tests that a quick run leaves out: those after the first ``sampled`` ones."""
    seen = Counter[tuple[Path, str]]()
    for item in items:
        if marker := item.get_closest_marker("sampled"):
            test = item.path, getattr(item, "originalname", item.name)
            seen[test] += 1
            if seen[test] > marker.args[0]:
                yield item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    RUNNING_UNIT[:] = [item.nodeid] if item.get_closest_marker("unit") else []
    try:
        return (yield)
    finally:
        RUNNING_UNIT.clear()


def forbid_processes(event: str, _: object) -> None:
    if RUNNING_UNIT and event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec"):
        raise AssertionError(f"{RUNNING_UNIT[0]} starts a process ({event}): move it to tests/system")


def note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not is_expected(reason):
            UNEXPECTED.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    note_skip(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if GUARDS:
        end_leftovers(session)
    skipped = UNEXPECTED and session.config.getoption("no_unexpected_skips")
    if (skipped or LEFTOVERS) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for report in terminalreporter.stats.get("passed", ()):
        if table := dict(report.user_properties).get("soak"):
            terminalreporter.section("soak")
            terminalreporter.write_line(str(table))
    if UNEXPECTED and config.getoption("no_unexpected_skips"):
        terminalreporter.section("unexpected skips", red=True)
        terminalreporter.write_line("\n".join(UNEXPECTED))
    rows = rows_of(report for reports in terminalreporter.stats.values() for report in reports)
    if rows and SOAK:
        terminalreporter.section("the real client: scenario, version, what was done, seconds to each task's return")
        terminalreporter.write_line("\n".join(rows))
    if LEFTOVERS:
        terminalreporter.section("processes that tests left running", red=True)
        terminalreporter.write_line("\n".join(LEFTOVERS))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project with the plugin's folder."""
    folder = tmp_path / "project"
    (folder / ".yolo-planning").mkdir(parents=True)
    return folder.resolve()


@pytest.fixture
def claude_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client's state folder for the test: the real one is never read."""
    home = tmp_path / "home"
    (home / ".claude").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    for name in ("TMUX", "TMUX_PANE"):
        monkeypatch.delenv(name, raising=False)
    return home / ".claude"


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    started = Children(tmp_path)
    yield started
    started.end()


@pytest.fixture
def cli(project: Path, claude_home: Path) -> Cli:
    """A person at work in the project."""
    return Cli(project)


@pytest.fixture
def cli_of_teams(cli: Cli, project: Path, claude_home: Path) -> Cli:
    """The same project with the teams red and blue."""
    for team in ("red", "blue"):
        write_team(claude_home, team, project)
    return cli


@pytest.fixture
def daemon(project: Path, claude_home: Path, tmp_path: Path) -> Iterator[StartDaemon]:
    """Start a daemon on the project (``config`` is the text of its file) and waits until it watches."""
    running: list[RunningDaemon] = []
    (own_state_dir() / STARTS_FILE).unlink(missing_ok=True)  # many deaths in the tests before would pause all starts

    def start(*arguments: str, config: str = "", over: Path | None = None) -> RunningDaemon:
        at = over or project
        if config:
            write_settings(at, config)
        log = tmp_path / f"daemon-{len(running)}.log"
        with log.open("wb") as output:
            child = start_program(("run", "--project", str(at), *arguments), tmp_path, output.fileno())
        started = RunningDaemon(at, child, log)
        running.append(started)
        wait_until(
            lambda: (
                child.poll() is not None or any(e["evidence"].get("pid") == child.pid for e in started.did("started"))
            ),
            "the daemon to start",
        )
        return started

    yield start
    for each in running:
        if each.child.poll() is None:
            # A killed process writes no coverage.
            each.child.send_signal(signal.SIGTERM if "COVERAGE_PROCESS_CONFIG" in os.environ else signal.SIGKILL)
        each.child.wait()


@pytest.fixture
def tmux(tmp_path: Path, claude_home: Path) -> Iterator[PrivateTmux]:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux here")
    started = PrivateTmux(tmp_path)
    yield started
    started.end()


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script before the program of that name on every process's path."""

    def put(name: str, script: str) -> None:
        program = tmp_path / "bin" / name
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


@pytest.fixture
def testbed(tmp_path: Path, project: Path, claude_home: Path) -> Iterator[RelayTestbed]:
    """An MCP relay between a client and servers that the test plays."""
    started = RelayTestbed(tmp_path, project)
    yield started
    started.end()


@pytest.fixture
def team(project: Path, claude_home: Path, children: Children, daemon: StartDaemon) -> Iterator[Team]:
    started = Team(project, claude_home, children, daemon)
    yield started
    started.end()
