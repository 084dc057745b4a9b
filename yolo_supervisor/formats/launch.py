"""How an agent was started, and the command line that starts it again.

A command line may hold secrets, so it is not copied into the journal, a report or a notice.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

from yolo_supervisor.formats.client_options import COMMANDS, Part, parts, program
from yolo_supervisor.formats.launch_fields import (
    ENVIRONMENT,
    SESSION,
    VALUE_LIMIT,
    a_flag,
    a_path,
    a_session,
    a_text,
    a_text_or_none,
    all_names,
    all_texts,
    all_variables,
    dump_document,
    load_document,
)
from yolo_supervisor.formats.start import Start
from yolo_supervisor.redaction import redacted


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How an agent was started. Bytes that are no UTF-8 are lone surrogates in the texts, as by ``os.fsdecode``."""

    agent: str
    """The agent's id."""
    name: str
    session: str | None
    """The client's id of its conversation."""
    argv: tuple[str, ...]
    folder: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables of ``ENVIRONMENT`` that it had."""
    absent: tuple[str, ...] = ()
    """The variables of ``ENVIRONMENT`` that it did not have: a tmux server may give them to a successor."""
    claude_dir: str | None = None
    mode: str | None = None
    """Its last known permission mode."""
    tmux_session: str | None = None
    """The name of its tmux session."""
    window: str | None = None
    """The name of its tmux window."""
    headless: bool = False
    """Whether it answers one prompt and ends (``--print``)."""


def dump_launch(launch: Launch) -> bytes:
    return dump_document(
        {
            "agent": launch.agent,
            "name": launch.name,
            "session": launch.session,
            "argv": list(launch.argv),
            "folder": launch.folder,
            "environment": dict(sorted(launch.environment.items())),
            "absent": list(launch.absent),
            "claude_dir": launch.claude_dir,
            "mode": launch.mode,
            "tmux_session": launch.tmux_session,
            "window": launch.window,
            "headless": launch.headless,
        }
    )


def load_launch(data: bytes) -> Launch | None:
    """The launch of a document; None if anything in it is not as ``dump_launch`` writes it."""
    try:
        raw = load_document(data)
        return Launch(
            agent=a_text(raw["agent"]),
            name=a_text(raw["name"]),
            session=a_session(raw["session"]) if raw["session"] is not None else None,
            argv=all_texts(raw["argv"], empty=True),
            folder=a_path(raw["folder"]),
            environment=all_variables(raw["environment"]),
            absent=all_names(raw["absent"]),
            claude_dir=a_path(raw["claude_dir"]) if raw["claude_dir"] is not None else None,
            mode=a_text_or_none(raw["mode"]),
            tmux_session=a_text_or_none(raw["tmux_session"]),
            window=a_text_or_none(raw["window"]),
            headless=a_flag(raw["headless"]),
        )
    except (KeyError, ValueError):
        return None


class LaunchCode(StrEnum):
    """The reason why an agent cannot be started again."""

    NO_PROGRAM = "no_program"
    """Its command line is empty, or the program has overwritten it."""
    NO_SESSION = "no_session"
    """Its session is not known."""
    COMMAND = "command"
    """It was started with a command of the client, such as ``claude agents``, and holds no conversation."""
    AMBIGUOUS = "ambiguous"
    """An unknown option is followed by a word that may be its value or a prompt."""
    NOT_SAVED = "not_saved"
    """It does not save its conversation."""
    DRIVEN = "driven"
    """Another program drives it through its standard input."""
    NO_NOTE = "no_note"
    """It is headless, and does nothing without a prompt."""


@dataclass(frozen=True, slots=True)
class LaunchProblem:
    """Decisions compare ``code``; ``text`` is for people and the journal."""

    code: LaunchCode
    text: str


MODES = {"plan": 0, "default": 1, "manual": 1, "acceptEdits": 2, "auto": 3, "dontAsk": 3, "bypassPermissions": 4}
"""The client's permission modes, and how much each allows. ``manual`` is the newer name of ``default``."""

STRICT = "default"
"""The mode of a start of which no mode is known. Both versions of the client know this name."""

NOTE_LIMIT = 96 * 1024
"""The longest note, in bytes. Linux accepts arguments of up to 128 KiB."""

_BYPASS, _MODE, _INHERITED = "--dangerously-skip-permissions", "--permission-mode", "--inherit-permission-mode"

_FIRST_START_ONLY = frozenset(
    {
        "--resume", "--continue", "--session-id", "--fork-session", "--from-pr", "--resume-session-at",
        "--resume-drops-turn", "--rewind-files", "--reply-on-resume", "--session-began-as-copy", "--teleport",
        "--cloud", "--remote", "--environment", "--pool", "--correlation-id", "--metadata", "--ref", "--on-branch",
        "--attach-serve", "--forward-home-settings", "--prefill", "--deep-link-origin", "--deep-link-repo",
        "--deep-link-last-fetch", "--init", "--init-only", "--maintenance", "--worktree", "--tmux", "--background",
        "--desktop", "--file", "--hold-repository-while-parked", "--runner-declares", "--initialize-fields",
    }
)  # fmt: skip
"""Options that say which conversation a start begins with, or what it prepares: a second start must not repeat that.

A second ``--worktree`` would make another work tree, and ``--file`` would replace files that were changed since.
"""

_DRIVEN = frozenset({"--sdk-url", "--await-claim", "--await-initialize"})


def resume_argv(launch: Launch, note: str | None, fresh: bool = False) -> tuple[str, ...] | LaunchProblem:
    """The command line that resumes the conversation with ``note`` as the next prompt, or begins one (``fresh``).

    Its mode allows no more than the agent was allowed before. The note is one argument.
    """
    length = program(launch.argv).length
    said = parts(launch.argv[length:])
    if (problem := _problem(launch, said, note, fresh)) is not None:
        return problem
    kept = [part for part in said if part.complete and part.name not in ("", "--", *_FIRST_START_ONLY)]
    words = [word for part in _limited(kept, launch.mode) for word in part.words]
    conversation = () if fresh or launch.session is None else ("--resume", launch.session)
    if fresh and (note := _as_prompt(note)):
        conversation = ("--", note)  # behind an option with many values it would be one of them
    elif note := _as_prompt(note):
        conversation = (*conversation, note)
    return (*launch.argv[:length], *words, *conversation)


def is_headless(argv: Sequence[str]) -> bool:
    """Whether a client with this command line answers one prompt and ends."""
    return any(part.name == "--print" for part in parts(argv[program(argv).length :]))


def resumed_session(argv: Sequence[str]) -> str | None:
    """The session that the command line names; None if it names none, or begins a copy of it."""
    said = parts(argv[program(argv).length :])
    if any(part.name == "--fork-session" for part in said):
        return None
    named = [value for part in said if part.name in ("--resume", "--session-id") for value in part.values]
    session = PurePosixPath(named[-1]).name.removesuffix(".jsonl") if named else ""  # it may name the transcript
    return session if SESSION.fullmatch(session) else None


def start_of(
    launch: Launch, argv: Sequence[str], *, team: str | None, homes: Iterable[str], lock: str, pane: str | None = None
) -> Start:
    """The start of the agent with this command line, which ``resume_argv`` has returned."""
    named = program(argv)
    return Start(
        argv=tuple(argv),
        folder=launch.folder,
        session=launch.session or launch.agent,
        agent=launch.agent,
        lock=lock,
        team=team,
        homes=tuple(dict.fromkeys((*homes, *((launch.claude_dir,) if launch.claude_dir else ())))),
        environment=launch.environment,
        absent=launch.absent,
        pane=pane,
        program=named.length,
        script=named.script,
        is_client=named.is_client,
    )


def _problem(launch: Launch, said: Sequence[Part], note: str | None, fresh: bool) -> LaunchProblem | None:
    names = {part.name for part in said}
    operand = next((part.words[0] for part in said if not part.name), None)
    if not launch.argv or not launch.argv[0] or (len(launch.argv) > 1 and not any(launch.argv[1:])):
        return LaunchProblem(LaunchCode.NO_PROGRAM, "the program has overwritten its command line")
    if operand in COMMANDS:
        return LaunchProblem(LaunchCode.COMMAND, f"it was started with the command {operand}, and has no conversation")
    for part, following in itertools.pairwise(said):
        if part.name and not part.known and not following.name and "=" not in part.words[0]:
            return LaunchProblem(
                LaunchCode.AMBIGUOUS,
                f"the option {_shown(part.name)} is not known: the word behind it may be its value or a prompt",
            )
    if names & _DRIVEN or any(part.name == "--input-format" and "stream-json" in part.values for part in said):
        return LaunchProblem(LaunchCode.DRIVEN, "another program drives it through its standard input")
    if not fresh and launch.session is None:
        return LaunchProblem(LaunchCode.NO_SESSION, "its session is not known")
    if not fresh and SESSION.fullmatch(launch.session or "") is None:
        return LaunchProblem(LaunchCode.NO_SESSION, "its session has no valid id")
    if not fresh and "--no-session-persistence" in names:
        return LaunchProblem(LaunchCode.NOT_SAVED, "it does not save its conversation (--no-session-persistence)")
    if "--print" in names and _as_prompt(note) is None:
        return LaunchProblem(LaunchCode.NO_NOTE, "it is headless (--print), and does nothing without a prompt")
    return None


def _shown(option: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in option[:60])


def _as_prompt(note: str | None) -> str | None:
    """The note as an argument that is neither an option, a command of the client, nor one of its prompts' prefixes."""
    text = (note or "").replace("\0", "").strip()
    if not text:
        return None
    if not text[0].isalnum():
        text = f"Note: {text}"
    if len(text.split(maxsplit=1)) == 1:
        text += "."
    return text.encode("utf-8", "ignore")[:NOTE_LIMIT].decode("utf-8", "ignore")


def _limited(kept: Sequence[Part], mode: str | None) -> list[Part]:
    """The options with a permission mode that allows no more than ``mode``, the last known one, and than they do."""
    allowed = _mode_for(_modes(kept), mode)
    if allowed is None:
        return list(kept)
    option = Part(_MODE, (_MODE, allowed))
    places = [at for at, part in enumerate(kept) if part.name in (_BYPASS, _MODE, _INHERITED)]
    at = places[0] if places else len(kept)
    others = [part for part in kept if part.name not in (_BYPASS, _MODE, _INHERITED)]
    return [*others[:at], option, *others[at:]]


def _modes(kept: Sequence[Part]) -> list[str]:
    """The permission modes that the options name. Of each the last counts, and an inherited one only alone."""
    last = {part.name: _value(part) for part in kept if part.name in (_MODE, _INHERITED)}
    named = ["bypassPermissions"] if any(part.name == _BYPASS for part in kept) else []
    named += [last[_MODE]] if _MODE in last else []
    return named or list(last.values())


def _value(part: Part) -> str:
    return part.values[-1] if part.values else ""


def _mode_for(named: Sequence[str], last: str | None) -> str | None:
    """The mode to start with; None if what the options say is right.

    A transcript is not believed where it would allow more than the options. Without an option the client's settings
    decide, and a last mode of ``bypassPermissions`` is above all that they can say.
    """
    known = [mode for mode in named if mode in MODES]
    if last in MODES and len(known) == len(named):
        enough = max(map(MODES.__getitem__, known)) if known else MODES["auto"] + 1
        wanted = last if MODES[last] < enough else None
    else:
        wanted = min(known, key=MODES.__getitem__, default=STRICT)
        wanted = last if last in MODES and MODES[last] < MODES[wanted] else wanted
        wanted = None if named == [wanted] else wanted
    return STRICT if wanted == "manual" else wanted


# -- the environment --------------------------------------------------------------------------------------------------


def kept_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables of ``ENVIRONMENT`` that are kept, and the names of those that are not set.

    A value that may hold a secret, is no text, or is too long is in neither.
    """
    kept = {name: environment[name] for name in sorted(ENVIRONMENT) if name in environment}
    absent = tuple(sorted(ENVIRONMENT - environment.keys()))
    return {name: value for name, value in kept.items() if _is_harmless(value)}, absent


@functools.lru_cache(maxsize=512)
def _is_harmless(value: str) -> bool:
    """Whether the value is short and holds no secret, such as the password or the query of an address."""
    in_address = "://" in value and ("@" in value or "?" in value)
    return len(value) <= VALUE_LIMIT and "\ufffd" not in value and not in_address and redacted(value) == value
