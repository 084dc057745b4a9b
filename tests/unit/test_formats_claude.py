"""Claude Code's files and command lines, and a rule for all JSON: an unreadable file is never an empty one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.project import write_task
from yolo_supervisor.formats import claude, tasks
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.models import Task

PATH = Path("tasks/session-85d6cfb4/1.json")
CLAIMED = {"id": "1", "subject": "Fix bug", "status": "in_progress", "blocks": [], "owner": "dev-1"}
SESSION = {
    "pid": 22885, "sessionId": "85d6cfb4-e039-4e27-ad22-f3bfa65d65f7", "cwd": "/x/proj", "startedAt": 1795379572760,
    "procStart": "154701", "version": "2.1.197", "kind": "interactive", "name": "proj-18", "status": "busy",
}  # fmt: skip
TEAM = {
    "name": "session-85d6cfb4", "leadAgentId": "team-lead@session-85d6cfb4", "leadSessionId": SESSION["sessionId"],
    "members": [
        {"agentId": "team-lead@session-85d6cfb4", "name": "team-lead", "agentType": "team-lead",
         "tmuxPaneId": "leader", "cwd": "/x/proj", "backendType": "in-process"},
        {"agentId": "dev-1@session-85d6cfb4", "name": "dev-1", "agentType": "general-purpose",
         "tmuxPaneId": "%1", "cwd": "/x/proj", "backendType": "tmux", "isActive": True},
    ],
}  # fmt: skip

PARSERS: dict[str, Callable[[bytes], object]] = {
    "task": lambda data: claude.task(data, "session-85d6cfb4", PATH),
    "session": claude.session,
    "team": lambda data: claude.team(data, "session-85d6cfb4"),
}


def objects(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects that may look like a document of the client, or may not."""
    keys = st.sampled_from([*CLAIMED, *SESSION, "members", "agentId", "tmuxPaneId"]) | text
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
    values = plain | st.lists(plain, max_size=2) | st.lists(st.dictionaries(keys, plain, max_size=3), max_size=2)
    return st.dictionaries(keys, values, max_size=6)


wild = st.text(max_size=12)
tame = st.text("abc-éß😀 ", max_size=12)
relaxed = settings(deadline=None, max_examples=60)

STYLES: dict[str, Callable[[Any], str]] = {
    "as the client writes": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    "as the plugin rewrites": lambda value: json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True),
    "as jq writes": lambda value: json.dumps(value, indent=2, ensure_ascii=False) + "\n",
    "compact": lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    "escaped": json.dumps,
}


# -- unreadable is never empty ------------------------------------------------------------------------------------


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@given(data=st.binary())
@relaxed
def test_garbage_is_unreadable_and_raises_nothing_else(parse: Callable[[bytes], object], data: bytes) -> None:
    assume(not data.lstrip().startswith(b"{"))

    assert parse(data) is None


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@given(value=objects(wild), cut=st.integers(0, 20))
@relaxed
def test_any_object_can_be_looked_at(parse: Callable[[bytes], object], value: Any, cut: int) -> None:
    data = json.dumps(value).encode()

    parse(data)
    parse(data[cut:])


@pytest.mark.parametrize(
    "data", [b"", b" \n", b"[]", b"null", b"true", b'"{}"', b"7", b"\0" * 40, b'{"a":' * 100_000, b"\xff\xfe{", b"{}{}"]
)
def test_a_document_without_an_object_is_unreadable(data: bytes) -> None:
    assert load_object(data) is None


@pytest.mark.parametrize("document", [CLAIMED, SESSION, TEAM], ids=PARSERS)
def test_a_half_written_file_is_unreadable_wherever_it_ends(document: dict[str, Any]) -> None:
    whole = json.dumps(document, indent=2).encode()

    assert [load_object(whole[:end]) for end in range(len(whole))] == [None] * len(whole)
    assert load_object(whole) == document


# -- tasks --------------------------------------------------------------------------------------------------------


def test_a_task_as_the_client_writes_it(claude_home: Path) -> None:
    path = write_task(claude_home, "session-85d6cfb4", 7, owner="dev-1", status="in_progress")

    assert claude.task(path.read_bytes(), "session-85d6cfb4", path) == Task(
        list="session-85d6cfb4", number="7", status="in_progress", owner="dev-1", path=path, subject="Fix bug"
    )


@pytest.mark.parametrize("owner", [{}, {"owner": ""}, {"owner": None}, {"owner": 7}, {"owner": ["dev-1"]}])
def test_a_task_without_owner_is_unowned(owner: dict[str, Any]) -> None:
    found = claude.task(json.dumps({"status": "pending", **owner}).encode(), "list", PATH)

    assert found is not None
    assert found.owner is None


@pytest.mark.parametrize("status", [{}, {"status": None}, {"status": 1}, {"status": ["in_progress"]}])
def test_a_task_without_a_status_is_unreadable(status: dict[str, Any]) -> None:
    assert claude.task(json.dumps({"id": "1", **status}).encode(), "list", PATH) is None


def test_only_task_files_are_tasks() -> None:
    others = [".lock", ".lock.lock", ".highwatermark", "1.json.lock", "1.json.tmp", ".1.json.99.tmp", "1.json~", "1"]

    assert all(map(claude.is_task_file, ["1.json", "12.json", "fix-login_2.json"]))
    assert not any(map(claude.is_task_file, others))


def given_back(data: bytes) -> bytes:
    return tasks.with_state(Task(list="list", number="1", status="", owner=None, path=PATH), data, tasks.PENDING, None)


@given(before=objects(wild))
@relaxed
def test_other_fields_of_a_task_survive_in_order(before: dict[str, Any]) -> None:
    before |= {"status": "in_progress", "owner": "dev-1"}
    after = {key: value for key, value in before.items() if key != "owner"} | {"status": "pending"}

    written = json.loads(given_back(json.dumps(before, indent=2, ensure_ascii=False).encode()))

    assert list(written.items()) == list(after.items())


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@given(before=objects(tame))
@relaxed
def test_giving_a_task_back_changes_no_other_byte(style: Callable[[Any], str], before: dict[str, Any]) -> None:
    before |= {"status": "in_progress", "owner": "dev-1"}
    after = {key: value for key, value in before.items() if key != "owner"} | {"status": "pending"}

    assert given_back(style(before).encode()) == style(after).encode()


def test_a_requeued_task_has_no_owner_and_can_be_claimed() -> None:
    found = claude.task(given_back(json.dumps(CLAIMED).encode()), "list", PATH)

    assert found is not None
    assert (found.status, found.owner) == ("pending", None)


def test_half_an_emoji_survives() -> None:
    before = '{\n  "status": "in_progress",\n  "owner": "dev-1",\n  "subject": "é \\ud83d cut off"\n}'

    after = json.loads(given_back(before.encode()))

    assert after == {"status": "pending", "subject": "é \ud83d cut off"}


@pytest.mark.parametrize("subject", [b"\xed\xa0\x80", b"na\xc3\xafve \xed\xa0\xbd"])
def test_any_readable_task_can_be_requeued(subject: bytes) -> None:
    data = b'{"status": "in_progress", "owner": "dev-1", "subject": "' + subject + b'"}'

    if claude.task(data, "list", PATH) is not None:
        assert json.loads(given_back(data))["status"] == "pending"


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"NaN", b"Infinity"])
def test_output_is_readable_by_every_json_parser(number: bytes) -> None:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    data = b'{"status": "in_progress", "owner": "dev-1", "metadata": {"cost": ' + number + b"}}"

    if load_object(data) is not None:  # unreadable is a good answer, too: then it is never rewritten
        json.loads(given_back(data), parse_constant=refuse)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"status": "in_progress"', b"\0\0"])
def test_a_document_that_is_no_task_is_not_requeued(data: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        given_back(data)


# -- sessions -----------------------------------------------------------------------------------------------------


def test_a_session_as_the_client_writes_it() -> None:
    assert claude.session(json.dumps(SESSION).encode()) == claude.Session(
        pid=22885, session_id=str(SESSION["sessionId"]), cwd="/x/proj", started="154701", name="proj-18", status="busy"
    )


@pytest.mark.parametrize("key", ["pid", "sessionId", "cwd", "procStart"])
def test_a_session_without_an_identifying_key_is_unreadable(key: str) -> None:
    nothing: list[Any] = [None, "", [], {}]
    for value in nothing:
        if (key, value) != ("procStart", ""):
            assert claude.session(json.dumps({**SESSION, key: value}).encode()) is None
    assert claude.session(json.dumps({k: v for k, v in SESSION.items() if k != key}).encode()) is None


@pytest.mark.parametrize("pid", [0, 1, -1, True, "22885", 22885.0])
def test_a_session_has_the_pid_of_an_ordinary_process(pid: object) -> None:
    assert claude.session(json.dumps({**SESSION, "pid": pid}).encode()) is None


def test_a_team_is_named_after_the_session_that_leads_it() -> None:
    assert claude.team_of_session(str(SESSION["sessionId"])) == TEAM["name"]


# -- teams --------------------------------------------------------------------------------------------------------


def test_a_team_as_the_client_writes_it() -> None:
    found = claude.team(json.dumps(TEAM).encode(), "session-85d6cfb4")

    assert found is not None
    assert (found.lead_id, found.lead_session) == (TEAM["leadAgentId"], TEAM["leadSessionId"])
    assert found.members[1] == claude.Member(
        "dev-1@session-85d6cfb4", "dev-1", "general-purpose", "/x/proj", pane="%1", backend="tmux", active=True
    )


@pytest.mark.parametrize(
    ("member", "in_process"),
    [
        ({"tmuxPaneId": "%1", "backendType": "tmux"}, False),
        ({"tmuxPaneId": "in-process"}, True),
        ({"tmuxPaneId": ""}, True),
        ({"tmuxPaneId": "%1", "backendType": "in-process"}, True),
        ({"backendType": "iterm2"}, False),
        ({}, False),
    ],
)
def test_a_member_without_a_pane_runs_in_its_lead(member: dict[str, str], in_process: bool) -> None:
    found = claude.team(json.dumps({"members": [{"agentId": "dev-1@t", **member}]}).encode(), "t")

    assert found is not None
    assert found.members[0].in_process is in_process


def test_members_that_make_no_sense_are_left_out() -> None:
    members: list[Any] = [None, 7, "dev-1", [], {}, {"agentId": 7}, {"agentId": ""}, {"agentId": "dev-2@t"}]

    found = claude.team(json.dumps({"members": members}).encode(), "t")

    assert found is not None
    assert [(member.agent_id, member.name) for member in found.members] == [("dev-2@t", "dev-2")]


# -- command lines ------------------------------------------------------------------------------------------------


def test_a_teammate_is_known_by_its_command_line() -> None:
    argv = "claude --agent-id dev-1@session-85d6cfb4 --agent-name dev-1 --team-name session-85d6cfb4 --agent-color blue"

    assert claude.flags([*argv.split(), "--parent-session-id", "85d6", "--agent-type", "qa"]) == claude.Flags(
        "dev-1@session-85d6cfb4", "dev-1", "session-85d6cfb4", role="qa", parent="85d6"
    )


def test_a_teammate_without_a_name_has_that_of_its_id() -> None:
    found = claude.flags(["claude", "--agent-id", "dev-1@t", "--team-name", "t"])

    assert found is not None
    assert found.name == "dev-1"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["claude"],
        ["claude", "--agent-id", "dev-1@t"],
        ["claude", "--team-name", "t"],
        ["claude", "--agent-id", "", "--team-name", "t"],
        ["claude", "--team-name", "t", "--agent-id"],
    ],
)
def test_a_process_without_agent_and_team_is_no_teammate(argv: list[str]) -> None:
    assert claude.flags(argv) is None


@given(st.lists(st.sampled_from(["--agent-id", "--team-name", "--agent-name", "", "x@y"]) | st.text()), st.text())
@relaxed
def test_any_command_line_can_be_looked_at(argv: list[str], executable: str) -> None:
    assert claude.looks_like_agent(argv, executable) or claude.flags(argv) is None


@pytest.mark.parametrize(
    ("argv", "executable"),
    [
        (["claude"], "/usr/bin/node"),
        (["node", "/usr/lib/node_modules/@anthropic-ai/claude-code/cli.js"], "/usr/bin/node"),
        (["2.1.197"], "/home/u/.local/share/claude/versions/2.1.197"),
        (["python3", "x.py", "--agent-id", "dev@t", "--team-name", "t"], "/usr/bin/python3"),
    ],
)
def test_an_agent_looks_like_one(argv: list[str], executable: str) -> None:
    assert claude.looks_like_agent(argv, executable)


@pytest.mark.parametrize(
    "argv",
    [["bash"], ["tmux", "new", "-d"], ["vim", "claude.md"], ["ls", "-l", "/home/u/.claude"], ["claudette"]],
)
def test_other_programs_do_not_look_like_agents(argv: list[str]) -> None:
    assert not claude.looks_like_agent(argv, f"/usr/bin/{argv[0]}")


# -- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/u", "CLAUDE_CONFIG_DIR": "/elsewhere"}, Path("/elsewhere")),
        ({"HOME": "/home/u", "CLAUDE_CONFIG_DIR": ""}, Path("/home/u/.claude")),
        ({"HOME": "/home/u"}, Path("/home/u/.claude")),
        ({}, None),
    ],
)
def test_the_client_keeps_its_state_where_its_environment_says(environment: dict[str, str], folder: Path) -> None:
    assert claude.config_dir(environment) == folder
