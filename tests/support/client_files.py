"""The files of Claude Code's clients in a simulated world, as 2.1.197 and 2.1.332 write them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.simulation import Process, Time
from yolo_supervisor.formats import transcripts
from yolo_supervisor.models import iso


@dataclass(eq=False)
class Member:
    """A member of a team, as the team's file shows it."""

    name: str
    in_process: bool = False
    active: bool | None = None


@dataclass(eq=False)
class Team:
    """A team, as its file shows it."""

    name: str
    lead_session: str
    lead_process: Process
    members: list[Member] = field(default_factory=list)
    there: bool = True
    """Whether its folder exists."""


@dataclass(eq=False)
class Chat:
    """A conversation: its transcript, and what each record of it says of its agent."""

    path: Path
    fields: dict[str, Any]
    tool: str | None = None
    """The id of the tool use without a result."""
    uses: int = 0


class ClientFiles:
    """Writes the files of all clients, in virtual time. ``newest`` says which version of the client writes them."""

    def __init__(self, time: Time, home: Path, project: Path, stamp: Callable[[Path], None], *, newest: bool) -> None:
        self.newest = newest
        self._time = time
        self._home = home
        self._project = project
        self._stamp = stamp
        self._slug = home / "projects" / transcripts.slug(project)

    def write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._stamp(path)

    def write_json(self, path: Path, value: object) -> None:
        self.write(path, json.dumps(value).encode())

    # -- sessions and teams ------------------------------------------------------------------------------------------

    def session_file(self, process: Process) -> Path:
        return self._home / "sessions" / f"{process.pid}.json"

    def write_session(
        self, process: Process, session: str, status: str, waiting_for: str | None = None, *, hosted: bool = False
    ) -> None:
        namespace = process.boot.split("/", 2)
        said: dict[str, Any] = {
            "pid": process.pid, "sessionId": session, "cwd": str(self._project), "procStart": str(process.started),
            "kind": "bg" if hosted else "interactive", "status": status,
        }  # fmt: skip
        said |= {"waitingFor": waiting_for} if waiting_for else {}
        said |= {"pidDomain": f"linux:{namespace[0]}:pid:[{namespace[2]}]"} if self.newest else {}
        self.write_json(self.session_file(process), said)

    def remove_session(self, process: Process) -> None:
        self.session_file(process).unlink(missing_ok=True)
        self._stamp(self.session_file(process))

    def write_team(self, team: Team) -> None:
        lead = {
            "agentId": f"team-lead@{team.name}", "name": "team-lead", "agentType": "team-lead", "tmuxPaneId": "leader",
            "backendType": "in-process", "cwd": str(self._project), "joinedAt": int(self._time.time() * 1000),
        }  # fmt: skip
        said = {
            "name": team.name, "leadAgentId": lead["agentId"], "leadSessionId": team.lead_session,
            "members": [lead, *(self._member(team, member) for member in team.members)],
        }  # fmt: skip
        if self.newest:
            process = team.lead_process
            said["leadProcess"] = {"pid": process.pid, "procStart": str(process.started)}
        self.write_json(self._home / "teams" / team.name / "config.json", said)
        team.there = True

    def _member(self, team: Team, member: Member) -> dict[str, Any]:
        said: dict[str, Any] = {
            "agentId": f"{member.name}@{team.name}", "name": member.name, "agentType": "general-purpose",
            "joinedAt": int(self._time.time() * 1000) - 10_000, "cwd": str(self._project),
            "tmuxPaneId": "in-process" if member.in_process else "%1",
            "backendType": "in-process" if member.in_process else "tmux",
        }  # fmt: skip
        return said if member.active is None else {**said, "isActive": member.active}

    def remove_team(self, team: Team) -> None:
        shutil.rmtree(self._home / "teams" / team.name, ignore_errors=True)
        self._stamp(self._home / "teams" / team.name)
        team.there = False

    def write_daemon(self, process: Process) -> None:
        """The file of the client's own daemon."""
        self.write_json(self._home / "daemon.lock", {"pid": process.pid, "procStart": str(process.started)})

    # -- transcripts -------------------------------------------------------------------------------------------------

    def chat_of_session(self, session: str) -> Chat:
        return Chat(self._slug / f"{session}.jsonl", {"sessionId": session})

    def chat_of_teammate(self, session: str, name: str, team: str) -> Chat:
        return Chat(self._slug / f"{session}.jsonl", {"sessionId": session, "agentName": name, "teamName": team})

    def chat_of_mate(self, lead: str, name: str, team: str, number: int) -> Chat:
        """The conversation of a teammate inside its lead's process."""
        path = self._slug / lead / "subagents" / f"agent-a{name}-{number:x}.jsonl"
        self.write_json(
            path.with_suffix(".meta.json"), {"taskKind": "in_process_teammate", "name": name, "teamName": team}
        )
        return Chat(path, {"sessionId": lead, "isSidechain": True})

    def asks(self, chat: Chat) -> None:
        """A prompt, or a tool's result, is on its way to the model."""
        content = [{"type": "tool_result", "tool_use_id": chat.tool}] if chat.tool else "Go on."
        chat.tool = None
        self._record(chat, {"type": "user", "message": {"role": "user", "content": content}})
        self.requests(chat)

    def requests(self, chat: Chat) -> None:
        """A request to the model; a second one in a row is a retry."""
        if self.newest:
            self._record(chat, {"type": "api-request", "querySource": "repl_main_thread"})

    def fails_once(self, chat: Chat, status: int) -> None:
        """A request failed and will be tried again: 2.1.332 shows the retry alone."""
        if self.newest:
            self.requests(chat)
        else:
            self._record(chat, {"type": "system", "subtype": "api_error", "error": {"status": status}})

    def uses_tool(self, chat: Chat, name: str = "Bash") -> None:
        chat.uses += 1
        chat.tool = f"toolu_{chat.uses}"
        content = [{"type": "tool_use", "id": chat.tool, "name": name, "input": {}}]
        self._answers(chat, content, "tool_use")

    def ends_turn(self, chat: Chat) -> None:
        self._answers(chat, [{"type": "text", "text": "Done."}], "end_turn")
        self._record(chat, {"type": "system", "subtype": "turn_duration"})

    def gives_up(self, chat: Chat, status: int, error: str) -> None:
        """The retries are used up."""
        chat.tool = None
        message = {"content": [{"type": "text", "text": f"API Error: {status}"}], "stop_reason": "stop_sequence"}
        said = {"isApiErrorMessage": True, "error": error, "apiErrorStatus": status, "message": message}
        self._record(chat, {"type": "assistant", **said})

    def _answers(self, chat: Chat, content: list[dict[str, Any]], stop: str) -> None:
        self._record(
            chat, {"type": "assistant", "message": {"role": "assistant", "content": content, "stop_reason": stop}}
        )

    def _record(self, chat: Chat, said: dict[str, Any]) -> None:
        chat.path.parent.mkdir(parents=True, exist_ok=True)
        with chat.path.open("a") as script:
            script.write(json.dumps({**chat.fields, "timestamp": iso(self._time.now()), **said}) + "\n")
            script.write(json.dumps({"type": "tools-used", **chat.fields}) + "\n")
        self._stamp(chat.path)


def write_hook_note(
    folder: Path, event: str, client: Process, payload: dict[str, Any], lasting: int | None, at_s: float
) -> None:
    """A note as ``yolo-supervisor hook`` leaves it; ``lasting`` numbers those that are all kept."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{event}.{client.pid}" + (f".{lasting}-{client.started}" if lasting is not None else "")
    ancestry: Iterable[str] = (
        f"99998:{client.started}:python3:99999", f"99999:{client.started}:sh:99999",
        f"{client.pid}:{client.started}:claude:{client.pid}",
    )  # fmt: skip
    path = folder / name
    path.write_bytes(" ".join(ancestry).encode() + b"\n" + json.dumps(payload).encode())
    os.utime(path, (at_s, at_s))
