"""The configuration: defaults, the user's file, the project's file, the command line.

The defaults are set here and explained in ``config/supervisor.toml``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from yolo_supervisor.config.trust import Trust, limited, trusted_content
from yolo_supervisor.formats.plugin import PLANNING
from yolo_supervisor.fs.bounded import read_regular
from yolo_supervisor.fs.trust import other_writers
from yolo_supervisor.user_dirs import config_dir, home

LIMIT = 2**20
"""The largest configuration that is read, in bytes."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Policy = Literal["terminate", "drain", "notify", "keep"]
"""The treatment of the agents of a session that its person has left."""
RestartPolicy = Literal["never", "on-crash", "always"]
"""Which ends of an agent are followed by a new start; see ``policy/restart.py``."""
AgentName = Annotated[str, msgspec.Meta(pattern=r"^[\w .@:/+~-]{1,100}\Z")]
"""The name or the role of an agent."""
AgentNames = Annotated[tuple[AgentName, ...], msgspec.Meta(max_length=500)]
Pause = Annotated[float, msgspec.Meta(ge=0, le=86400)]


class ProcessesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    sample_s: Annotated[float, msgspec.Meta(ge=0.05, le=86400)] = 1.0


class AgentsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    interval_s: Seconds = 10.0
    mass_death_min: Annotated[int, msgspec.Meta(ge=2)] = 5


class SessionsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    interval_s: Seconds = 5.0
    on_detach: Policy | Literal["auto"] = "auto"
    detach_grace_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 10.0


class TasksConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    interval_s: Seconds = 30.0
    idle_limit_s: Seconds = 300.0
    unknown_limit_s: Seconds = 900.0
    stall_limit_s: Seconds = 900.0
    on_stall: Literal["notify", "requeue"] = "notify"
    waiting_after_s: Seconds = 600.0
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    poison_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 60.0
    backoff_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 5.0
    backoff_max_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 300.0
    hold_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 300.0
    hold_max_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 21600.0
    requeues_per_s: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 25.0


class RestartConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    policy: RestartPolicy = "never"
    on_stall: AgentNames = ()
    window_s: Seconds = 15.0
    progress_s: Seconds = 60.0
    max_starts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    period_s: Seconds = 300.0
    backoff_s: Pause = 5.0
    backoff_max_s: Pause = 300.0
    reset_s: Seconds = 600.0
    host_pause_s: Pause = 5.0
    host_starts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    host_period_s: Seconds = 300.0
    storm_deaths: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 5
    storm_s: Seconds = 10.0
    storm_pause_s: Pause = 60.0
    note: Annotated[str, msgspec.Meta(pattern="^(?!-)", max_length=4000)] = ""
    max_resume_tokens: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 0
    when_too_large: Literal["ask", "fresh"] = "ask"
    strays: Literal["notify", "stop"] = "notify"
    restore: Literal["ask", "boot", "never"] = "ask"
    max_bg_restarts: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    min_free_mib: Annotated[int, msgspec.Meta(ge=0, le=2**20)] = 256
    agents: dict[AgentName, RestartPolicy] = {}


class LeasesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    interval_s: Seconds = 30.0


class StateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    interval_s: Seconds = 30.0
    settle_s: Seconds = 0.3
    files: tuple[Annotated[str, msgspec.Meta(pattern=r"^(?!/)(?!(.*/)?\.\.(/|$)).+$")], ...] = (
        ".execution-state.json",
        "config.json",
        "STATE.md",
        ".events/event-log.jsonl",
        ".locks/*.lease",
        ".contracts/*.json",
    )


class FlagsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    interval_s: Seconds = 30.0
    max_error_rate: Annotated[float, msgspec.Meta(ge=0.001, le=0.9)] = 0.1
    alpha: Annotated[float, msgspec.Meta(ge=1e-9, le=0.2)] = 0.01
    min_samples: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 5
    window: Annotated[int, msgspec.Meta(ge=20, le=100_000)] = 200
    window_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86400)] = 3600.0
    probation_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86400)] = 0.0


class McpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    start_s: Seconds = 60.0
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    backoff_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.1
    attempt_s: Seconds = 30.0
    retry_s: Seconds = 60.0
    cap_s: Seconds = 240.0
    failures: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    cool_down_s: Seconds = 60.0
    restarts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    repeatable: tuple[str, ...] = ("acquire_lock", "release_lock", "compile_context", "run_test_suite")
    unrepeatable: tuple[str, ...] = ()


class JournalConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size_mib: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 64


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["json", "console"] = "json"
    file: Annotated[str, msgspec.Meta(pattern="^($|[/~])")] = ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set. Lengths of time are in seconds."""

    mode: Literal["heal", "observe"] = "heal"
    projects: tuple[str, ...] = ()
    claude_dir: str = ""
    processes: ProcessesConfig = ProcessesConfig()
    agents: AgentsConfig = AgentsConfig()
    sessions: SessionsConfig = SessionsConfig()
    tasks: TasksConfig = TasksConfig()
    restart: RestartConfig = RestartConfig()
    leases: LeasesConfig = LeasesConfig()
    state: StateConfig = StateConfig()
    flags: FlagsConfig = FlagsConfig()
    mcp: McpConfig = McpConfig()
    journal: JournalConfig = JournalConfig()
    log: LogConfig = LogConfig()
    trust: Trust = Trust()
    """The standing of the project's own file: a result of loading, no setting."""


class ConfigError(Exception):
    """The configuration is invalid.

    The message has one sentence a line, each with file and line.
    """


def user_file(environment: Mapping[str, str]) -> Path:
    return config_dir(environment) / "yolo-supervisor" / "supervisor.toml"


def expanded(name: str) -> Path:
    """The path with ``~`` expanded; RuntimeError if the home directory is unknown."""
    path = Path(name)
    if path.parts[:1] == ("~",) and (folder := home()) is not None:
        return folder.joinpath(*path.parts[1:])
    return path.expanduser()


def project_file(project: Path) -> Path:
    return project / PLANNING / "supervisor.toml"


def load(
    project: Path | None = None,
    extra: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration of a project (None: of the daemon itself).

    A later layer wins key by key. ``extra`` is the file named on the command line, which must exist; ``overrides`` are
    its options. ConfigError for a file that cannot be read, an unknown key, a wrong type or value.
    """
    merged = read_file(user_file(environment))
    trust = Trust()
    if project is not None:
        merged, trust = _with_project(merged, project, environment)
    if extra is not None:
        merged = _merge(merged, read_file(extra, needed=True))
    config = msgspec.structs.replace(msgspec.convert(_merge(merged, overrides or {}), Config), trust=trust)
    for name in (config.claude_dir, config.log.file, *config.projects):
        try:
            expanded(name)
        except RuntimeError as error:
            raise ConfigError(f"{name!r} in the configuration: {error}") from error
    return config


def _with_project(
    below: Mapping[str, Any], project: Path, environment: Mapping[str, str]
) -> tuple[dict[str, Any], Trust]:
    """The settings with those of the project's own file, as far as the file is trusted."""
    path = project_file(project)
    trusted = trusted_content(str(project), environment)
    content = _content(path)
    if trusted is None:
        in_force = dict(below)
        settings = project_settings(content, path)
    else:
        in_force = _merge(below, project_settings(trusted, path))
        if trusted == content:
            return in_force, Trust(trusted=True)
        try:
            settings = project_settings(content, path)
        except ConfigError as error:
            return in_force, Trust(trusted=True, edited=True, error=str(error))
    base = msgspec.to_builtins(msgspec.convert(in_force, Config))
    allowed, ignored = limited(settings, base)
    return _merge(in_force, allowed), Trust(trusted=trusted is not None, edited=trusted is not None, ignored=ignored)


def read_project_file(project: Path) -> bytes:
    """The content of a project's own file, trusted or not; empty without one. ConfigError if it is invalid."""
    path = project_file(project)
    content = _content(path)
    project_settings(content, path)
    return content


def project_settings(content: bytes, path: Path) -> dict[str, Any]:
    """The settings in the content of a project's own file. ConfigError if it is invalid."""
    settings = _parse(content, path)
    if "projects" in settings:
        raise ConfigError(f"{_where(path, 'projects')}: a project's own file cannot name projects")
    if "on_stall" in settings.get("restart", {}):
        where = _where(path, "restart", "on_stall")
        raise ConfigError(f"{where}: a project's own file cannot name agents that are restarted when they stall")
    return settings


def read_file(path: Path, needed: bool = False) -> dict[str, Any]:
    """The settings of one file. ConfigError if it is invalid, or needed and missing."""
    return _parse(_content(path, needed), path)


def _content(path: Path, needed: bool = False) -> bytes:
    """The content of a configuration, which may be a link, as people who keep theirs in a repository have it.

    Empty if there is none. ConfigError if it cannot be read, or is needed and missing.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: cannot be read: it is no ordinary file")
        for place in (path, path.parent):
            if path.exists() and (reason := other_writers(place, place.stat())):
                raise ConfigError(f"{path}: not trusted: {reason}; chmod go-w {place}")
        return read_regular(path, LIMIT, follow=True)
    except FileNotFoundError as error:
        if needed:
            raise ConfigError(f"{path}: there is no such file") from error
        return b""
    except OSError as error:
        if isinstance(error, NotADirectoryError) and not needed:
            return b""
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    """The settings in a content. ConfigError, naming the file and the line, if it is invalid."""
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        line = (match[2] if match else None) or str(len(text.splitlines()))
        where, what = f"{path}:{line}", match[1] if match else str(error)
        raise ConfigError(f"{where}: not valid TOML: {what}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    _check(raw, path)
    return raw


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return merged


def _check(raw: Mapping[str, Any], path: Path) -> None:
    """Raise one ConfigError for all errors in a file."""
    problems = [
        f"{_where(path, *key)}: unknown key '{'.'.join(key)}'{_nearest(key)}" for key in _unknown_keys(raw, Config)
    ]
    for key, value, kind in _values(raw, Config):
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            what = str(error).partition(" - at ")[0].replace("`", "'").replace("Expected", "expected")
            problems.append(f"{_where(path, *key)}: '{'.'.join(key)}': {what}")
        else:
            if "\0" in (value if isinstance(value, str) else "".join(value) if isinstance(value, list) else ""):
                problems.append(f"{_where(path, *key)}: '{'.'.join(key)}': no name holds a NUL character")
    if problems:
        raise ConfigError("\n".join(problems))


def _fields(model: type[msgspec.Struct]) -> dict[str, Any]:
    """The settings of a table, and their types."""
    return {field.encode_name: field.type for field in msgspec.structs.fields(model) if field.type is not Trust}


def _is_table(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _unknown_keys(raw: Mapping[str, Any], model: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    fields = _fields(model)
    for key, value in raw.items():
        if key not in fields:
            yield (*above, key)
        elif _is_table(fields[key]) and isinstance(value, Mapping):
            yield from _unknown_keys(value, fields[key], (*above, key))


def _values(
    raw: Mapping[str, Any], model: Any, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    fields = _fields(model)
    for key, value in raw.items():
        if key in fields:
            if _is_table(fields[key]) and isinstance(value, Mapping):
                yield from _values(value, fields[key], (*above, key))
            elif get_origin(fields[key]) is dict and isinstance(value, Mapping):  # its keys are names of agents
                yield (*above, key), list(value), AgentNames
                yield from (((*above, key, name), each, get_args(fields[key])[1]) for name, each in value.items())
            else:
                yield (*above, key), value, fields[key]


def known_keys(model: Any = Config, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All keys, tables before their members."""
    for name, kind in _fields(model).items():
        yield (*above, name)
        if _is_table(kind):
            yield from known_keys(kind, (*above, name))


def _nearest(key: Sequence[str]) -> str:
    known = [".".join(k) for k in known_keys() if k != tuple(key[: len(k)])]
    by_leaf = {k.rpartition(".")[2]: k for k in reversed(known)}
    dotted = ".".join(key)
    near = difflib.get_close_matches(dotted, known, 1, 0.6) or [
        by_leaf[leaf] for leaf in difflib.get_close_matches(key[-1], by_leaf, 1, 0.6)
    ]
    return f"; did you mean '{near[0]}'?" if near else ""


def _where(path: Path, *key: str) -> str:
    """``file:line`` of a key, or ``file`` if the line is not found.

    The line is searched, since the parser keeps no positions.
    """
    table: tuple[str, ...] = ()
    try:
        lines = read_regular(path, LIMIT, follow=True).decode().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for number, line in enumerate(lines, 1):
        if header := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line):
            table = tuple(_bare(part) for part in header[1].split("."))
            if table == key:
                return f"{path}:{number}"
        elif (name := re.match(r"\s*([\w.\"' -]+?)\s*=", line)) and key[: len(table)] == table:
            here = (*table, *(_bare(part) for part in name[1].split(".")))
            inline = key[: len(here)] == here and "{" in line and key[-1] in line
            if here == key or inline:
                return f"{path}:{number}"
    return str(path)


def _bare(part: str) -> str:
    return part.strip().strip("\"'")
