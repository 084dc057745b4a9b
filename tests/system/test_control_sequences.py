"""Texts of other programs: none drives a person's terminal, and none is executed."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from support.cli import Cli, start_program
from support.daemon import QUICK, StartDaemon
from support.project import agent_of, write_record, write_task
from support.tmux import PrivateTmux
from support.wait import LIMIT_S
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.cli.app import COMMANDS
from yolo_supervisor.mcp.circuit_breaker import Circuit
from yolo_supervisor.models import ProcessId
from yolo_supervisor.policy.retry import letter_file
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

TYPED = "\33]0;x\7\33[2J\x9b31m\r\n\u202e\x7f\udcff$(touch owned)`touch owned`;touch owned"
"""Text for arguments and names of files: a title, a clearing, a colour in one byte, more lines, letters backwards, a
delete, no text at all, and commands of a shell."""

WRITTEN = TYPED.replace("\udcff", "\ud800\0")
"""The same for JSON texts, which may hold more."""


def on_a_terminal(cli: Cli, *words: str) -> str:
    """The output of a command at a terminal."""
    reader, writer = pty.openpty()
    tty.setraw(writer)  # it shows each byte as it comes
    child = start_program(words, cli.folder, writer, TERM="xterm-256color")
    os.close(writer)
    output = b""
    try:
        while True:
            output += os.read(reader, 65536)
    except OSError:  # EIO: no process has the terminal any more
        child.wait(LIMIT_S)
    finally:
        os.close(reader)
        child.kill()
        child.wait()
    return output.decode("utf-8", "surrogateescape")


def assert_harmless(text: str) -> None:
    wrong = {c for c in text if not c.isprintable()} - {"\n"}
    assert not wrong, ascii(text)


@pytest.mark.parametrize(
    "words",
    [("task", "list", "\33[31mfoo"), ("\33[31m",), ("task", "\33]0;x\7"), ("--\33[2J",),
     ("history", "--since", "\x9b2J"), ("task", "list", "--project", "\33[31m"), ("flag", "record", "x", "\u202e"),
     ("crash", "show", "\33c\udcff"),
     ("service", "status", "\33[2J"), ("commit", "--\33[2J"), ("hook", "\33[2J", "\33[2J"), ("exec", "--\33[2J")],
)  # fmt: skip
def test_typed_arguments_cannot_emit_control_sequences(cli: Cli, words: tuple[str, ...]) -> None:
    assert_harmless(on_a_terminal(cli, *words))


# -- every text of other programs ---------------------------------------------------------------------------------


def wrong_everywhere(value: Any) -> Any:
    """The same value with every text in it spoilt."""
    if isinstance(value, dict):
        return {key: wrong_everywhere(each) for key, each in value.items()}
    return WRITTEN + str(value) if isinstance(value, str) else value


def put(path: Path, *lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")


@pytest.fixture
def spoilt(cli: Cli, project: Path, claude_home: Path) -> Iterator[Cli]:
    """A project in which every text of other programs is spoilt. None is executed."""
    name, planning, own = TYPED, project / ".yolo-planning", Paths(project)
    gone = ProcessId(os.getpid(), 1, Processes(backend()).boot)
    for team in ("red", name.replace("/", "")):
        member = {"agentId": f"{WRITTEN}@{team}", "name": WRITTEN, "cwd": str(project), "tmuxPaneId": "%1"}
        put(claude_home / "teams" / team / "config.json", {"name": team, "members": [member], "description": WRITTEN})
        write_task(claude_home, team, 1, WRITTEN, "in_progress", subject=WRITTEN, description=WRITTEN)
        write_task(claude_home, team, 2, WRITTEN, WRITTEN, subject=WRITTEN)
        write_task(claude_home, team, name, "dev-1", "in_progress")
    write_record(project, agent_of(WRITTEN.replace("\0", ""), "red", gone))
    plans = [{"id": WRITTEN, "title": WRITTEN, "status": "running", "owner": WRITTEN}, {"id": "1", "status": WRITTEN}]
    put(planning / ".execution-state.json", {"phase": WRITTEN, "status": WRITTEN, "plans": plans})
    put(planning / "config.json", {WRITTEN: True, "v3_event_log": True, "v3_lease_locks": True, "mode": WRITTEN})
    put(
        planning / ".events/event-log.jsonl",
        *({"event": e, "ts": WRITTEN, "data": {"x": WRITTEN}} for e in (WRITTEN, "x")),
    )
    lease = {
        "acquired_at": "2026-11-22T20:55:10Z",
        "owner": WRITTEN,
        "resource": WRITTEN,
        "ttl_secs": 60,
        "type": WRITTEN,
    }
    for each in (f"{name}.lease", f"{name}.lock", "b.lease"):
        put(planning / ".locks" / each, lease)
    snapshot = {"phase": WRITTEN, "snapshot_ts": "2026-11-22T20:55:10Z", "execution_state": {"plans": plans},
                "agent_role": WRITTEN, "compaction_trigger": WRITTEN, "recent_commits": [WRITTEN]}  # fmt: skip
    for each in (f"{name}-20261122T205510.json", "5-20261122T205511.json"):
        put(planning / ".snapshots" / each, snapshot)
    for each in (f"{name}.json", "5-1.json"):
        put(
            planning / ".contracts" / each,
            {"task_id": WRITTEN, "phase": WRITTEN, "plan": WRITTEN, "contract_hash": WRITTEN},
        )
    put(planning / "phases" / name / f"{name}-PLAN.md", WRITTEN)
    put(planning / ".agent-health" / f"{name}.json", {"pid": 4194303, "role": WRITTEN, "last_event": WRITTEN})
    (planning / ".agent-pids").write_text(f"{name.encode('utf-8', 'replace').decode()}\n4194302\n")
    (planning / "STATE.md").write_bytes(name.encode("utf-8", "surrogateescape"))
    letter = {"version": 1, "id": TYPED, "list": WRITTEN, "number": WRITTEN, "path": WRITTEN, "subject": WRITTEN,
              "why": WRITTEN, "last_owner": WRITTEN, "evidence": {"reports": [WRITTEN], WRITTEN: WRITTEN}}  # fmt: skip
    put(own.folder / "dead-letters" / letter_file(TYPED), letter)
    report = dict.fromkeys(("id", "at", "agent", "class", "why", "name", "confidence"), WRITTEN)
    more = {"perhaps": [{"class": WRITTEN, "confidence": 0, "why": WRITTEN}], "exit": {WRITTEN: WRITTEN}}
    lists = {key: [WRITTEN, {WRITTEN: WRITTEN}] for key in ("turns", "hooks", "processes", "pane")}
    put(own.crashes / f"{name}.json", {**report, **more, **lists, "repository": {"head": WRITTEN}, "id": TYPED})
    circuit = Circuit(WRITTEN, WRITTEN, WRITTEN, WRITTEN, 0.0, "here", 60.0, 5)
    (own.folder / "circuits").mkdir(exist_ok=True)
    (own.folder / "circuits" / "a.json").write_bytes(circuit.dump())
    (own.hooks / f"StopFailure.1.{name}").write_text(f"1:1:x:1\n{json.dumps({'error': WRITTEN, 'agent_id': WRITTEN})}")
    store = Store(project)
    store.open()
    for kind in ("agent", "task", "lease", "flag", "session", "file", "commit", "gate", "command", "daemon"):
        alert = Escalate(
            kind=kind,  # type: ignore[arg-type]
            code=AlertCode.CALL_FAILED, key=TYPED, reason=WRITTEN, evidence={WRITTEN: [WRITTEN]},
        )  # fmt: skip
        store.note(alert, WRITTEN)
    store.close()
    for words in (["init", "-q", "."], ["config", "user.name", "dev"], ["config", "user.email", "dev@example.com"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    hook = project / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    yield cli
    assert list(project.parent.rglob("owned")) == []


LOOKING = """
status; check; history; history task; doctor; agent list; task list; dead-letter list; dead-letter show X; crash list
crash show X; lease list; flag list; state verify; snapshot list; explain agent X; explain task X; explain lease X
explain session X; explain file X; explain flag X; explain commit X; service status; history task X; check --config C
"""
DOING = """
agent register 1 --role X; agent forget X; agent stop X --yes
agent hold X; agent reset X; agent start X; agent restore; agent restore X
task claim X --owner X; task heartbeat X --owner X --token X
task done X --owner X --token 1; task requeue X
task claim red/1 --owner X; dead-letter redrive X; dead-letter drop X
lease acquire X --owner X; lease renew X --owner X; lease release X --owner X; lease acquire a --owner X --ttl X
flag record X error; flag enable X; flag disable X; snapshot save --role X; snapshot restore X
snapshot restore --phase X; state recover; state adopt X; state adopt --dismiss; trust --revoke; trust
gate check X X X X; gate check contract 5 1 X; gate repair X X X X; hook X; commit --allow-empty -m X
exec -- X; exec -- false X; mcp -- X; service reload; service install --system --user X
service uninstall --system --user X; history; explain commit commit; explain command X
"""
ELSEWHERE = {"run": "below", "drill": "it writes its own project", "hook": "it says nothing"}


def lines(text: str) -> list[list[str]]:
    return [
        [TYPED if word == "X" else word for word in each.split()] for each in re.split(r";|\n", text) if each.strip()
    ]


def test_every_command_is_tried() -> None:
    tried = {tuple(words[:2]) for words in lines(LOOKING + ";" + DOING)}
    for name in COMMANDS.keys() - ELSEWHERE.keys():
        command = importlib.import_module(f"yolo_supervisor.cli.{name.replace('-', '_')}").command
        for each in command.commands if isinstance(command, click.Group) else [None]:
            assert any(words[0] == name and each in (None, *words[1:]) for words in tried), (name, each)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("commands", [LOOKING, DOING], ids=["looking", "doing"])
def test_external_text_cannot_emit_control_sequences_in_any_command(
    spoilt: Cli, project: Path, commands: str, form: str
) -> None:
    (project / "C").write_text(
        f"mode = {json.dumps(TYPED.replace(chr(0xDCFF), ''))}\n[{json.dumps('a' + chr(27))}]\nx = 1\n"
    )
    for words in lines(commands):
        output = on_a_terminal(spoilt, *words[:2], *(["--json"] if form == "json" else []), *words[2:])
        assert "Traceback" not in output, (words, output)
        try:
            assert_harmless(output)
        except AssertionError as error:
            raise AssertionError(f"{' '.join(map(ascii, words))}: {error}") from None


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_daemons_log_holds_no_control_sequence_either(
    spoilt: Cli, daemon: StartDaemon, tmux: PrivateTmux, log_format: str
) -> None:
    tmux.session("a#b$(touch owned)", "sleep 600")

    running = daemon("--log-format", log_format, config=QUICK)
    running.wait(lambda: running.did("forgotten"), "the dead agent to be healed")
    running.stop(signal.SIGTERM)

    text = running.log.read_text(errors="surrogateescape")
    assert "owned" in text
    assert_harmless(text)


def test_relay_messages_cannot_emit_control_sequences(spoilt: Cli) -> None:
    """The server's stderr is not filtered: a program that is run has the terminal."""
    server = spoilt.folder / "\33[2J\x9bserver"
    server.write_text(f"#!{sys.executable}\nprint({TYPED.replace(chr(0xDCFF), '')!r})")
    server.chmod(0o755)

    output = on_a_terminal(spoilt, "mcp", "--", str(server))

    assert "server wrote a line that is no JSON-RPC message" in output
    assert_harmless(output)
