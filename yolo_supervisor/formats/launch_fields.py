"""Strict and bounded fields of the documents about launches: ValueError for anything that is not as it was written.

The launcher imports this module, so it imports almost nothing.
"""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSION = 1
"""The version of both documents."""

SIZE_LIMIT = 2**22
"""The largest document, in bytes. Linux starts no program with more than 6 MiB of arguments, and usually 2 MiB."""

TEXT_LIMIT = 2**18
"""The longest argument, in characters. Linux accepts 128 KiB."""

COUNT_LIMIT = 10_000
"""The largest number of arguments."""

VALUE_LIMIT = 16 * 1024
"""The longest value of an environment variable that is kept, in characters."""

ENVIRONMENT = frozenset(
    {
        "HOME", "PATH", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "VIRTUAL_ENV", "CONDA_PREFIX",
        "NODE_EXTRA_CA_CERTS", "IS_SANDBOX", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy",
        "no_proxy", "CLAUDECODE", "CLAUDE_CONFIG_DIR", "CLAUDE_CODE_TASK_LIST_ID",
        "CLAUDE_CODE_EXPERIMENTAL_AGENT_TEAMS", "CLAUDE_CODE_TMPDIR", "CLAUDE_CODE_ENABLE_TASKS",
        "CLAUDE_CODE_ENABLE_TODO_TOOLS", "CLAUDE_CODE_SHELL", "CLAUDE_CODE_SIMPLE", "CLAUDE_CODE_SAFE_MODE",
        "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY", "CLAUDE_CODE_USE_ANTHROPIC_AWS",
        "CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD", "CLAUDE_CODE_USE_MANTLE", "CLAUDE_CODE_USE_GATEWAY",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS",
        "CLAUDE_CODE_DISABLE_WEB_FETCH", "CLAUDE_CODE_DISABLE_CRON", "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS",
        "CLAUDE_CODE_RESTRICT_PERSONAL_CONFIG", "CLAUDE_CODE_SUBAGENT_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL_FORCE",
        "CLAUDE_CODE_SUBAGENT_EFFORT", "CLAUDE_CODE_MAX_OUTPUT_TOKENS", "CLAUDE_CODE_MCP_AUTO_BACKGROUND_MS",
        "CLAUDE_CODE_PROXY_RESOLVES_HOSTS", "ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL",
        "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "ANTHROPIC_PROFILE", "ANTHROPIC_CONFIG_DIR", "ANTHROPIC_BEDROCK_BASE_URL", "ANTHROPIC_VERTEX_BASE_URL",
        "ANTHROPIC_VERTEX_PROJECT_ID", "ANTHROPIC_FOUNDRY_RESOURCE", "ANTHROPIC_AWS_BASE_URL",
        "ANTHROPIC_AWS_WORKSPACE_ID", "ANTHROPIC_GOOGLE_CLOUD_PROJECT", "ANTHROPIC_GOOGLE_CLOUD_LOCATION",
        "ANTHROPIC_GOOGLE_CLOUD_BASE_URL", "GOOGLE_CLOUD_PROJECT", "CLOUD_ML_REGION", "AWS_REGION",
        "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CONFIG_FILE", "MAX_THINKING_TOKENS", "API_TIMEOUT_MS", "MCP_TIMEOUT",
        "MCP_TOOL_TIMEOUT", "MAX_MCP_OUTPUT_TOKENS", "BASH_DEFAULT_TIMEOUT_MS", "BASH_MAX_TIMEOUT_MS",
        "DISABLE_TELEMETRY", "DISABLE_ERROR_REPORTING", "DISABLE_AUTOUPDATER", "DISABLE_COMPACT", "DO_NOT_TRACK",
        "CLAUDE_CODE_EVEN_MORE_DANGEROUSLY_SKIP_PERMISSIONS", "CLAUDE_CODE_ATTRIBUTION_PROJECT", "CLAUDE_PROJECT_UUID",
        "CLAUDE_CODE_SPEND_PROJECT", "CLAUDE_CODE_USER_DELEGATED_SESSION",
        "CLAUDE_CODE_USER_DELEGATED_SESSION_DIRECT_API", "CLAUDE_CODE_USER_DELEGATED_SESSION_ANY_CHECK_MODEL",
        "CLAUDE_CODE_USER_DELEGATED_SESSION_SERVER_CHECK_PROVIDERS",
        "CLAUDE_CODE_USER_DELEGATED_SESSION_ROUTINE_SERVER_CHECK_PROVIDERS",
        "CLAUDE_CODE_USER_DELEGATED_SESSION_ALLOWED_CHECK_MODELS",
    }
)  # fmt: skip
"""The environment variables that are kept. None of them is meant for a secret; all others come from the tmux server.

A lead clears some of them for its teammates, and a tmux server must not give those back.
"""

SESSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")
"""The form of a session's id. It is an argument, and the name of a file."""


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def dump_document(value: Mapping[str, Any]) -> bytes:
    return json.dumps({"version": VERSION, **value}, indent=2).encode() + b"\n"


def load_document(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data) if len(data) <= SIZE_LIMIT else None
    except RecursionError:
        raw = None
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        raise ValueError("no document of this version")
    return raw


def a_text(value: object, limit: int = TEXT_LIMIT, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty) or len(value) > limit or "\0" in value:
        raise ValueError("no text")
    return value


def a_text_or_none(value: object) -> str | None:
    return None if value is None else a_text(value)


def all_texts(value: object, *, empty: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > COUNT_LIMIT:
        raise ValueError("no texts")
    return tuple(a_text(text, empty=empty) for text in value)


def a_path(value: object) -> str:
    path = a_text(value)
    if not path.startswith("/"):
        raise ValueError("no absolute path")
    return path


def a_session(value: object) -> str:
    session = a_text(value)
    if SESSION.fullmatch(session) is None:
        raise ValueError("no id of a session")
    return session


def a_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")  # noqa: TRY004  # every error here is one of a value
    return value


def all_variables(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(map(_VARIABLE.fullmatch, value)):
        raise ValueError("no variables")
    return {name: a_text(text, empty=True) for name, text in value.items()}


def all_names(value: object) -> tuple[str, ...]:
    names = all_texts(value)
    if not all(map(_VARIABLE.fullmatch, names)):
        raise ValueError("no names of variables")
    return names


def a_number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no number")
    return value
