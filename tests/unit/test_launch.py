"""How agents were started, and the command lines that start them again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.formats.client_options import COMMANDS, OPTIONS, parts
from yolo_supervisor.formats.launch import (
    MODES,
    Launch,
    LaunchCode,
    LaunchProblem,
    dump_launch,
    kept_environment,
    load_launch,
    resume_argv,
)
from yolo_supervisor.formats.launch_fields import ENVIRONMENT
from yolo_supervisor.formats.start import Start, dump_start, load_start
from yolo_supervisor.formats.transcripts import permission_mode

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=()), min_size=1, max_size=40)
ARGUMENTS = st.lists(TEXTS | st.just(""), max_size=8).map(tuple)
PATHS = TEXTS.map("/{}".format)
SESSIONS = st.from_regex(r"\A[0-9A-Za-z][0-9A-Za-z_-]{0,40}\Z")
VARIABLES = st.dictionaries(st.sampled_from(sorted(ENVIRONMENT)), TEXTS | st.just(""))
NAMES = st.lists(st.sampled_from(sorted(ENVIRONMENT)), max_size=5).map(tuple)

LAUNCHES = st.builds(
    Launch, agent=TEXTS, name=TEXTS, session=st.none() | SESSIONS, argv=ARGUMENTS, folder=PATHS, environment=VARIABLES,
    absent=NAMES, claude_dir=st.none() | PATHS, mode=st.none() | TEXTS, tmux_session=st.none() | TEXTS,
    window=st.none() | TEXTS, headless=st.booleans(),
)  # fmt: skip
ARGV = st.tuples(TEXTS, ARGUMENTS).map(lambda words: (words[0], *words[1]))
STARTS = st.builds(
    Start, argv=ARGV, folder=PATHS, session=TEXTS, agent=TEXTS, lock=PATHS, team=st.none() | TEXTS,
    homes=st.lists(PATHS, max_size=3).map(tuple), environment=VARIABLES, absent=NAMES, pane=st.none() | TEXTS,
    program=st.just(1), script=st.none() | TEXTS, is_client=st.booleans(),
)  # fmt: skip


@given(LAUNCHES)
def test_a_launch_is_read_as_it_was_written(launch: Launch) -> None:
    assert load_launch(dump_launch(launch)) == launch


@given(STARTS)
def test_a_start_is_read_as_it_was_written(start: Start) -> None:
    assert load_start(dump_start(start)) == start


@given(LAUNCHES, st.data())
def test_a_damaged_launch_is_unreadable_or_another_launch(launch: Launch, data: st.DataObject) -> None:
    whole = dump_launch(launch)
    at = data.draw(st.integers(0, len(whole) - 2))  # the last byte is a line's end
    assert load_launch(whole[:at]) is None
    load_launch(whole[:at] + data.draw(st.binary(max_size=3)) + whole[at:])


# -- the command line that resumes ------------------------------------------------------------------------------------


def launch(*argv: str, session: str | None = "s-1", mode: str | None = "bypassPermissions") -> Launch:
    return Launch(agent="dev@t", name="dev", session=session, argv=argv, folder="/p", mode=mode)


def resumed(command: str, mode: str | None = "bypassPermissions", note: str | None = "go on") -> str:
    argv = resume_argv(launch(*command.split(), mode=mode), note)
    assert not isinstance(argv, LaunchProblem), argv
    return "|".join(argv).removesuffix("|--resume|s-1|go on")


def problem(command: str, note: str | None = "go on", **known: str | None) -> LaunchCode | None:
    argv = resume_argv(launch(*command.split(), **known), note)
    return argv.code if isinstance(argv, LaunchProblem) else None


TEAMMATE = (
    "/c/claude --agent-id dev-1@session-a8f93808 --agent-name dev-1 --team-name session-a8f93808 --agent-color blue "
    "--parent-session-id a8f93808-b401-4433-a638-76e401edb577 --lead-verify-key 1796008788192.MCowBQYDK2VwAyEA7CTz8 "
    "--agent-type general-purpose --dangerously-skip-permissions --model claude-opus-5-5"
)
"""The command line of a teammate of 2.1.332."""


def test_a_teammate_is_resumed_with_all_its_options() -> None:
    assert resumed(TEAMMATE) == TEAMMATE.replace(" ", "|")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("claude", "claude"),
        ("claude fix-it", "claude"),
        ("claude --model opus fix it -r old", "claude|--model|opus"),
        ("claude -cp hello", "claude|-p"),
        ("claude --resume=old --verbose", "claude|--verbose"),
        ("claude -rold --verbose", "claude|--verbose"),
        ("claude -r --verbose", "claude|--verbose"),
        ("claude --session-id old --fork-session --continue --from-pr 7 x", "claude"),
        ("claude --add-dir a b --verbose prompt", "claude|--add-dir|a|b|--verbose"),
        ("claude --allowedTools Read Edit", "claude|--allowedTools|Read|Edit"),
        ("claude --debug api prompt", "claude|--debug|api"),
        ("claude --debug -- prompt --model x", "claude|--debug"),
        ("claude --system-prompt --resume old", "claude|--system-prompt|--resume"),
        ("claude -nme -d2e -dhooks hi", "claude|-nme|-d2e|-dhooks"),
        ("claude --worktree w --tmux=classic --file f:a g:b --mcp-config m", "claude|--mcp-config|m"),
        ("claude --new --newer=1 word", "claude|--new|--newer=1"),
        ("node --max-old-space-size=4 /x/cli.js -p hi", "node|--max-old-space-size=4|/x/cli.js|-p"),
        ("/usr/bin/node -r /a.js /x/cli.js hi", "/usr/bin/node|-r|/a.js|/x/cli.js"),
        ("bun run /x/cli.js hi", "bun|run|/x/cli.js"),
        ("python3.11 -I -m stub --model x hi", "python3.11|-I|-m|stub|--model|x"),
        ("python3 -c code --model x hi", "python3|-c|code|--model|x"),
        ("sh -c code sh --model x hi", "sh|-c|code|sh|--model|x"),
    ],
)
def test_what_belongs_to_the_first_start_alone_is_left_out(command: str, expected: str) -> None:
    assert resumed(command) == expected


def test_words_may_hold_anything() -> None:
    text = "line\nline 'x' \"y\" $z `w` \\" + "x" * 100_000
    kept = ("/a b/claude", "--append-system-prompt", text, "--tools", "")
    assert resume_argv(launch(*kept, "--verbose", "old\nprompt"), "go\non") == (
        *kept, "--verbose", "--resume", "s-1", "go\non",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "mode", "expected"),
    [
        ("claude --dangerously-skip-permissions", "bypassPermissions", "claude|--dangerously-skip-permissions"),
        ("claude --dangerously-skip-permissions --model x", "plan", "claude|--permission-mode|plan|--model|x"),
        ("claude --dangerously-skip-permissions", "manual", "claude|--permission-mode|default"),
        ("claude --dangerously-skip-permissions", "auto", "claude|--permission-mode|auto"),
        ("claude --permission-mode plan", "bypassPermissions", "claude|--permission-mode|plan"),
        ("claude --permission-mode=acceptEdits", "default", "claude|--permission-mode|default"),
        ("claude --permission-mode acceptEdits", None, "claude|--permission-mode|acceptEdits"),
        ("claude --permission-mode plan --dangerously-skip-permissions", None, "claude|--permission-mode|plan"),
        ("claude --permission-mode plan --dangerously-skip-permissions", "auto", "claude|--permission-mode|auto"),
        ("claude --permission-mode manual", "default", "claude|--permission-mode|manual"),
        ("claude --permission-mode auto", "dontAsk", "claude|--permission-mode|auto"),
        ("claude --permission-mode newest", "bypassPermissions", "claude|--permission-mode|default"),
        ("claude --permission-mode newest", "plan", "claude|--permission-mode|plan"),
        ("claude --permission-mode", None, "claude|--permission-mode|default"),
        ("claude --inherit-permission-mode auto", "plan", "claude|--permission-mode|plan"),
        ("claude --inherit-permission-mode auto", "auto", "claude|--inherit-permission-mode|auto"),
        ("claude", "auto", "claude|--permission-mode|auto"),
        ("claude", "newest", "claude|--permission-mode|default"),
        ("claude", None, "claude|--permission-mode|default"),
        ("claude", "bypassPermissions", "claude"),
    ],
)
def test_a_start_allows_no_more_than_the_agent_had(command: str, mode: str | None, expected: str) -> None:
    assert resumed(command, mode) == expected


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("", LaunchCode.NO_PROGRAM),
        ("claude --new word", LaunchCode.AMBIGUOUS),
        ("claude -x word", LaunchCode.AMBIGUOUS),
        ("claude agents", LaunchCode.COMMAND),
        ("claude bg-spare --x", LaunchCode.COMMAND),
        ("claude -p --input-format stream-json", LaunchCode.DRIVEN),
        ("claude -p --input-format=stream-json", LaunchCode.DRIVEN),
        ("claude --sdk-url ws://x", LaunchCode.DRIVEN),
        ("claude -p --no-session-persistence x", LaunchCode.NOT_SAVED),
    ],
)
def test_what_cannot_be_started_again_is_left_to_a_person(command: str, code: LaunchCode) -> None:
    assert problem(command) == code


def test_an_overwritten_command_line_is_no_program() -> None:
    answer = resume_argv(launch("claude", "", "", ""), "go on")
    assert isinstance(answer, LaunchProblem)
    assert answer.code == LaunchCode.NO_PROGRAM


def test_a_session_is_needed_unless_a_new_one_begins() -> None:
    assert problem("claude", session=None) == LaunchCode.NO_SESSION
    assert problem("claude", session="-x") == LaunchCode.NO_SESSION
    assert resume_argv(launch("claude", "--add-dir", "a", session=None), "go", fresh=True) == (
        "claude", "--add-dir", "a", "--", "go.",
    )  # fmt: skip


def test_a_headless_agent_needs_a_prompt() -> None:
    assert problem("claude -p x", note=None) == LaunchCode.NO_NOTE
    assert problem("claude -p x", note=" \n") == LaunchCode.NO_NOTE
    assert problem("claude x", note=None) is None


@pytest.mark.parametrize(
    "note", ["--model x", "-", "doctor", "/exit now", "!rm x", "# x", "@f x", "x" * 200_000, "a\0b c"]
)
def test_a_note_is_one_argument_and_a_prompt(note: str) -> None:
    answer = resume_argv(launch("claude"), note)
    assert not isinstance(answer, LaunchProblem)
    assert answer[:-1] == ("claude", "--resume", "s-1")
    said = answer[-1]
    assert said[0].isalnum()
    assert said not in COMMANDS
    assert "\0" not in said
    assert len(said.encode()) <= 128 * 1024 - 1


NAMES_OF_OPTIONS = st.sampled_from(sorted(OPTIONS))
WORDS = NAMES_OF_OPTIONS | NAMES_OF_OPTIONS.map("{}=v".format) | st.sampled_from(
    ["prompt", "x y", "", "-", "--", "-pc", "-rold", "--odd", "--odd=1", "-x", "plan", "auto", "bypassPermissions"]
)  # fmt: skip
COMMAND_LINES = st.lists(WORDS, max_size=12).map(lambda words: ("claude", *words))
MODES_KNOWN = st.sampled_from([None, "newest", *MODES])


@given(COMMAND_LINES)
def test_parts_hold_every_word_in_order(argv: tuple[str, ...]) -> None:
    whole = [word for part in parts(argv[1:]) for word in part.words]
    clusters = "".join(argv[1:]).replace("-", "")
    assert "".join(whole).replace("-", "") == clusters


@given(COMMAND_LINES, MODES_KNOWN, st.none() | TEXTS)
def test_a_resume_of_a_resume_is_the_same(argv: tuple[str, ...], mode: str | None, note: str | None) -> None:
    before = launch(*argv, mode=mode)
    once = resume_argv(before, note)
    if not isinstance(once, LaunchProblem):
        assert resume_argv(dataclasses.replace(before, argv=once), note) == once


@given(COMMAND_LINES, MODES_KNOWN)
def test_no_prompt_of_the_first_start_survives(argv: tuple[str, ...], mode: str | None) -> None:
    answer = resume_argv(launch(*argv, mode=mode), "go on")
    if isinstance(answer, LaunchProblem):
        return
    assert answer[-3:] == ("--resume", "s-1", "go on")
    said = parts(answer[1:])
    assert [part.words for part in said if part.name == ""] == [("go on",)]
    assert sum(part.name == "--resume" for part in said) == 1
    kept = [part for part in said if part.name not in ("", "--resume", "--permission-mode")]
    before = iter(parts(argv[1:]))
    assert all(part in before for part in kept), "in the order of the first start"


@given(COMMAND_LINES, MODES_KNOWN)
def test_the_mode_is_never_above_what_is_known(argv: tuple[str, ...], mode: str | None) -> None:
    answer = resume_argv(launch(*argv, mode=mode), "go on")
    if isinstance(answer, LaunchProblem):
        return
    now, before = modes_of(answer), modes_of(argv)
    ceilings = [max(before)] if before else []
    ceilings += [MODES[mode]] if mode in MODES else []
    assert not now or max(now) <= min(ceilings, default=MODES["default"])
    assert now or (not before and mode == "bypassPermissions")


def modes_of(argv: Sequence[str]) -> list[int]:
    """The ranks of the modes that a command line names."""
    named = [part for part in parts(argv[1:]) if "permission" in part.name and "-mode" in part.name]
    ranks = [MODES[part.values[-1]] for part in named if part.values and part.values[-1] in MODES]
    bypass = any(part.name == "--dangerously-skip-permissions" for part in parts(argv[1:]))
    return [*ranks, *([MODES["bypassPermissions"]] if bypass else [])]


# -- the environment --------------------------------------------------------------------------------------------------


def test_no_variable_is_kept_that_is_meant_for_a_secret() -> None:
    assert not [name for name in ENVIRONMENT if re.search("KEY|TOKEN(?!S)|SECRET|HEADER|PASS|CREDENTIAL|AUTH", name)]


def test_a_value_with_a_secret_is_neither_kept_nor_absent() -> None:
    secret = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH"  # noqa: S105  # no real one
    environment = {
        "ANTHROPIC_BASE_URL": "https://user:word@host/", "HTTP_PROXY": "http://host/?key=1", "AWS_PROFILE": secret,
        "ANTHROPIC_API_KEY": "x", "LANG": "\ufffd", "PATH": "/bin:" * 10_000, "CLAUDECODE": "1", "NO_PROXY": "",
    }  # fmt: skip
    kept, absent = kept_environment(environment)
    assert kept == {"CLAUDECODE": "1", "NO_PROXY": ""}
    assert set(absent) == ENVIRONMENT - environment.keys()


# -- the permission mode at the end of a transcript -------------------------------------------------------------------

START = b'{"type":"permission-mode","permissionMode":"bypassPermissions","sessionId":"s"}\n'
PROMPT = b'{"type":"user","isSidechain":false,"message":{"content":"hi"},"permissionMode":"default"}\n'
OTHERS = (
    b'{"type":"mode","mode":"normal"}\n{"type":"user","isSidechain":true,"permissionMode":"plan"}\n'
    b'{"type":"user","message":{"content":"{\\"type\\":\\"user\\",\\"permissionMode\\":\\"plan\\"}"}}\n'
    b'{"type":"user","toolUseResult":{"permissionMode":"plan"}}\n{"type":"user","permissionMode":7}\n'
)


def test_the_last_record_with_a_mode_says_it() -> None:
    assert permission_mode(START + PROMPT) == "default"
    assert permission_mode(PROMPT + START + OTHERS) == "bypassPermissions"
    assert permission_mode(START + PROMPT[:-2]) == "bypassPermissions", "a torn line says nothing"
    assert permission_mode(PROMPT[5:] + OTHERS) is None
    assert permission_mode(b"") is None
