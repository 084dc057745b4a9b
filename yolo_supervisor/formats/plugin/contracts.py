"""The plugin's contracts, ``.contracts/{phase}-{plan}.json``, generated from plans (2.9.8).

They are byte for byte as the plugin's ``generate-contract`` writes them.

A plan is read line by line, as the plugin does it, and not as YAML: a nested ``must_haves`` is an empty list, and tasks
are headings ``## Task N`` or ``### Task N`` only.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import execution_state

FOLDER = ".contracts"

TOKEN_BUDGET, TIMEOUT_S = 50_000, 600
"""The values of the hard form if the ``config.json`` has no ``max_token_budget``, no ``task_timeout_seconds``."""

SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space for the plugin, as part of a regular expression. Python's ``\\s`` has four characters more."""

_BLANK = re.sub("\u2000-\u200a", "".join(map(chr, range(0x2000, 0x200B))), SPACE)
_FILES = re.compile(rf"\*\*Files:\*\*[{SPACE}]+(.+)")
_TASK = re.compile(rf"(?m)^\#{{2,3}}[{SPACE}]+Task[{SPACE}]+\d+")
_NATURAL = re.compile(r"\+?0*([0-9]{1,20})")
_INTEGER = re.compile(r"([+-]?)0*([0-9]{1,19})")


def path_of(phase: int, plan: int) -> Path:
    """The path of the contract in the planning folder. The numbers are not padded."""
    return Path(FOLDER, f"{phase}-{plan}.json")


def contract(plan: bytes, config: bytes) -> bytes | None:
    """The contract of a plan, by the plan's file and the ``config.json``.

    It has the hard form with ``v2_hard_contracts``, else the short one with ``v3_contract_lite``. None if neither is
    set, or if the plan does not contain the numbers of its phase and plan.
    """
    hard = plugin_config.enabled(config, "v2_hard_contracts")
    if not hard and not plugin_config.enabled(config, "v3_contract_lite"):
        return None
    try:
        head, body = _split(plan.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None
    numbers = _natural(_scalar(head, "phase")), _natural(_scalar(head, "plan"))
    if numbers[0] is None or numbers[1] is None:
        return None
    short = {
        "phase": numbers[0],
        "plan": numbers[1],
        "task_count": sum(1 for _ in _TASK.finditer(body)),
        "must_haves": _list(head, "must_haves"),
        "allowed_paths": _paths(body),
    }
    return execution_state.dump(_hard(short, head, load_object(config) or {}) if hard else short)


def _hard(short: dict[str, Any], head: list[str], config: dict[str, Any]) -> dict[str, Any]:
    phase, plan = short["phase"], short["plan"]
    contract = {
        **short,
        "phase_id": f"phase-{phase}",
        "plan_id": f"phase-{phase}-plan-{plan}",
        "objective": _scalar(head, "title") or "",
        "task_ids": [f"{phase}-{plan}-T{number}" for number in range(1, short["task_count"] + 1)],
        "forbidden_paths": _list(head, "forbidden_paths"),
        "depends_on": [number for item in _list(head, "depends_on") if (number := integer(item)) is not None],
        "verification_checks": _list(head, "verification_checks"),
        "max_token_budget": _setting(config, "max_token_budget", TOKEN_BUDGET),
        "timeout_seconds": _setting(config, "task_timeout_seconds", TIMEOUT_S),
    }
    return {**contract, "contract_hash": _hash(contract)}


def load(data: bytes) -> dict[str, Any] | None:
    """The contract in ``data``.

    None if the plugin could not read it, because of a byte order mark for instance.
    """
    return None if data.startswith(b"\xef\xbb\xbf") else load_object(data)


def intact(data: bytes) -> bool:
    """Whether the contract is as it was generated: its hash is right, or missing (short form).

    The bash version hashed the keys in the order of the file. For the plugin, and so here, such a hash is wrong.
    """
    contract = load(data)
    if contract is None:
        return False
    recorded = contract.pop("contract_hash", None)
    return not isinstance(recorded, str) or recorded in ("", _hash(contract))


def _hash(contract: dict[str, Any]) -> str:
    return hashlib.sha256(execution_state.dump(contract) + b"\n").hexdigest()


# -- a plan, read as the plugin reads it --------------------------------------------------------------------------


def _split(text: str) -> tuple[list[str], str]:
    """The stripped lines between the first two ``---``, and the text after the second."""
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    fences = [at for at, line in enumerate(lines) if _bare(line) == "---"][:2]
    if not fences:
        return [], ""
    begin, end = fences[0], fences[1] if len(fences) > 1 else len(lines)
    return [_bare(line) for line in lines[begin + 1 : end]], "\n".join(lines[end + 1 :])


def _scalar(head: list[str], key: str) -> str | None:
    """The first value that is not empty, unquoted."""
    values = (_bare(line[len(key) + 1 :]).strip('"').strip("'") for line in head if line.startswith(f"{key}:"))
    return next((value for value in values if value), None)


def _list(head: list[str], key: str) -> list[str]:
    """The items of a list: ``[a, b]`` after the key, or ``- a`` on the lines below it, up to any other line."""
    items: list[str] = []
    inside = False
    for line in head:
        if line.startswith(f"{key}:"):
            rest = _bare(line[len(key) + 1 :])
            if rest.startswith("[") and rest.endswith("]"):
                return [item for item in (*items, *map(_item, rest[1:-1].split(","))) if item]
            inside = True
        elif inside and line.startswith("- "):
            items.append(_item(line[2:]))
        elif inside and line and not line.startswith("#"):
            break
    return [item for item in items if item]


def _item(text: str) -> str:
    return _bare(_bare(text).strip('"').strip("'"))


def _paths(body: str) -> list[str]:
    """All paths after ``**Files:**``, sorted. As in the plugin, only these two remarks are removed from them."""
    parts = (part for line in _FILES.findall(body) for part in line.split(","))
    clean = (_bare(_bare(part).replace("(new)", "").replace("(if exists)", "")).strip("`") for part in parts)
    return sorted({path for path in map(_bare, clean) if path})


def _bare(text: str) -> str:
    return text.strip(_BLANK)


def _natural(text: str | None) -> int | None:
    match = _NATURAL.fullmatch(text or "")
    return value if match and (value := int(match[1])) < 2**64 else None


def integer(text: str) -> int | None:
    """The number as the plugin reads it: a sign and leading zeros are allowed.

    None for anything else.
    """
    match = _INTEGER.fullmatch(text)
    value = int(match[1] + match[2]) if match else None
    return value if value is not None and -(2**63) <= value < 2**63 else None


def _setting(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    return value if type(value) is int and 0 <= value < 2**64 else default
