"""How living agents were started is recorded once, kept private, and forgotten with the agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.processes import Children
from yolo_supervisor.formats.launch import Launch, load_launch
from yolo_supervisor.formats.transcripts import slug
from yolo_supervisor.inventory.launches import LaunchRecorder
from yolo_supervisor.models import Agent, Pane
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import PaneState, Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

WORDS = ("--agent-id", "dev@red", "--agent-name", "dev", "--team-name", "red")
RECORD = "dev@red~1-2.json"


class Recorder:
    """A recorder of a project's launches, with one agent."""

    def __init__(self, project: Path, home: Path, children: Children) -> None:
        self.project, self.home, self.children = project, home, children
        self.store = Store(project)
        self.store.open()
        self.processes = Processes(backend())
        self.launches = LaunchRecorder(self.store, self.processes)
        self.folder = self.store.paths.launches

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        argv = ("/bin/sh", "-c", "echo ready; read line", "claude", *(words or WORDS))
        child = self.children.start(*argv, cwd=self.project, stdin=subprocess.PIPE, **options)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    def agent(self, child: subprocess.Popen[bytes], **known: Any) -> Agent:
        identity = self.processes.identify(child.pid)
        facts = {"team": "red", "source": "process", "since": datetime.now(UTC), "claude_dir": self.home, **known}
        return Agent(id="dev@red", name="dev", role="dev", process=identity, pid=child.pid, **facts)

    def record(self, *agents: Agent, servers: tuple[Server, ...] = ()) -> Launch | None:
        named = {RECORD if not n else f"{n}{RECORD}": agent for n, agent in enumerate(agents)}
        self.launches.record(named, [self.home], [self.project], servers)
        return self.launches.of(RECORD)

    def again(self) -> LaunchRecorder:
        """The recorder of a later supervisor."""
        self.launches = LaunchRecorder(self.store, self.processes)
        return self.launches

    def transcript(self, session: str, *records: dict[str, object], name: str = "dev") -> Path:
        path = self.home / "projects" / slug(self.project) / f"{session}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"agentName": name, "teamName": "red"}
        path.write_text("".join(json.dumps({**facts, **record}) + "\n" for record in records or [{"type": "user"}]))
        return path


@pytest.fixture
def recorder(project: Path, claude_home: Path, children: Children) -> Iterator[Recorder]:
    started = Recorder(project, claude_home, children)
    yield started
    started.store.close()


def test_a_launch_is_recorded_while_its_agent_lives(recorder: Recorder) -> None:
    odd = "a 'b'\n$c \udcff"
    environment = {"PATH": os.environ["PATH"], "CLAUDE_CONFIG_DIR": "/c", "ANTHROPIC_API_KEY": "secret", "TZ": "UTC"}
    child = recorder.start(*WORDS, "-p", "--name", odd, env={**environment, "HOME": "/h"})
    agent = recorder.agent(child, session="s-1")
    launch = recorder.record(agent)
    assert launch is not None
    assert launch.argv[3:] == ("claude", *WORDS, "-p", "--name", odd)
    assert (launch.agent, launch.name, launch.session, launch.headless) == ("dev@red", "dev", "s-1", True)
    assert (launch.folder, launch.claude_dir) == (str(recorder.project), str(recorder.home))
    assert launch.environment == {"PATH": os.environ["PATH"], "CLAUDE_CONFIG_DIR": "/c", "TZ": "UTC", "HOME": "/h"}
    assert "ANTHROPIC_BASE_URL" in launch.absent
    path = recorder.folder / RECORD
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_launch(path.read_bytes()) == launch
    assert b"secret" not in path.read_bytes()
    assert b"sh" not in recorder.store.paths.journal.read_bytes()


def test_a_launch_outlives_the_agent_and_the_supervisor(recorder: Recorder) -> None:
    child = recorder.start()
    agent = recorder.agent(child)
    before = recorder.record(agent)
    assert before is not None
    child.kill()
    child.wait()
    assert recorder.record(agent) == before
    assert recorder.again().of(RECORD) == before
    assert recorder.record(agent) == before


def test_another_process_with_the_pid_is_not_recorded(recorder: Recorder) -> None:
    agent = recorder.agent(recorder.start())
    assert agent.process is not None
    reused = replace(agent, process=replace(agent.process, started=agent.process.started - 1))
    assert recorder.record(reused) is None


def test_a_program_that_is_being_started_is_read_again(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = recorder.agent(recorder.start())
    words = recorder.processes.backend.words(agent.pid or 0)
    monkeypatch.setattr(recorder.processes.backend, "words", lambda _: [b"/usr/bin/env", b"X=1", *words])
    assert recorder.record(agent) is None
    monkeypatch.setattr(recorder.processes.backend, "words", lambda _: words[:-2])
    recorder.record(agent)
    monkeypatch.undo()
    launch = recorder.record(agent)
    assert launch is not None
    assert launch.argv == tuple(word.decode() for word in words)


def test_a_file_is_written_only_when_something_has_changed(recorder: Recorder) -> None:
    agent = recorder.agent(recorder.start())
    recorder.record(agent)
    path = recorder.folder / RECORD
    before = path.stat().st_ino
    for _ in range(3):
        recorder.record(agent)
    recorder.again()
    recorder.record(agent)
    assert path.stat().st_ino == before
    launch = recorder.record(replace(agent, session="s-2"))
    assert launch is not None
    assert launch.session == "s-2"
    assert path.stat().st_ino != before


def test_the_launch_of_a_forgotten_agent_is_removed(recorder: Recorder) -> None:
    agent = recorder.agent(recorder.start())
    recorder.record(agent)
    (recorder.folder / "older.json").write_text("x")
    recorder.again()
    recorder.record(agent)
    recorder.record(agent)
    assert [path.name for path in recorder.folder.iterdir()] == [RECORD]
    assert recorder.record() is not None, "one round without it decides nothing"
    assert recorder.record() is None
    assert list(recorder.folder.iterdir()) == []


def test_a_teammates_session_is_that_of_the_transcript_that_it_writes(recorder: Recorder) -> None:
    older = recorder.transcript("older")
    os.utime(older, (1e9, 1e9))
    child = recorder.start()
    agent = recorder.agent(child)
    launch = recorder.record(agent)
    assert launch is not None
    assert launch.session is None, "the transcript of a predecessor"
    recorder.transcript("another", name="other")
    recorder.transcript("s-3")
    launch = recorder.record(agent)
    assert launch is not None
    assert launch.session == "s-3"


def test_a_resumed_teammates_session_is_on_its_command_line(recorder: Recorder) -> None:
    launch = recorder.record(recorder.agent(recorder.start(*WORDS, "--resume", "s-4", "go on")))
    assert launch is not None
    assert launch.session == "s-4"


def test_the_mode_is_that_at_the_end_of_the_transcript(recorder: Recorder) -> None:
    child = recorder.start()
    agent = recorder.agent(child, session="s-5")
    launch = recorder.record(agent)
    assert launch is not None
    assert launch.mode is None
    long: dict[str, object] = {"type": "assistant", "message": {"content": "x" * 300_000}}
    path = recorder.transcript("s-5", {"type": "permission-mode", "permissionMode": "plan"}, long)
    launch = recorder.record(agent)
    assert launch is not None
    assert launch.mode == "plan"
    with path.open("a") as file:
        file.write('{"type":"user","permissionMode":"acceptEdits"}\n')
    child.kill()
    child.wait()
    launch = recorder.again().of(RECORD)
    assert launch is not None
    assert launch.mode == "acceptEdits"


def test_the_place_in_tmux_is_kept(recorder: Recorder) -> None:
    agent = recorder.agent(recorder.start(), pane=Pane(socket="/s", server_pid=3, pane="%4"))
    state = PaneState(1, ("$0",), dead=False, window="claude")
    server = Server("/s", 3, {"$0": "team"}, {}, {"%4": state})
    launch = recorder.record(agent, servers=(server,))
    assert launch is not None
    assert (launch.tmux_session, launch.window) == ("team", "claude")
    assert recorder.record(agent, servers=(replace(server, pid=9),)) == launch
    assert recorder.record(agent) == launch


def test_a_full_disk_is_tried_again(recorder: Recorder) -> None:
    agent = recorder.agent(recorder.start())
    recorder.folder.rmdir()
    assert recorder.record(agent) is not None
    recorder.folder.mkdir()
    recorder.record(agent)
    assert (recorder.folder / RECORD).exists()
