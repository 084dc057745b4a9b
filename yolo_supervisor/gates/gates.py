"""Check and repair the plugin's hard gates, the conditions before and after a task.

The answers have the form of the plugin's ``hard-gate`` (2.9.8). The differences: every command has a time limit and
runs in the project; a gate does not pass if git fails; phases and plans are found in any spelling, in the active
milestone, too; and a verification counts by its verdict, not by a word in its text.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from yolo_supervisor.actions import notes
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.state import quarantine
from yolo_supervisor.clock import Clock
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import contracts, phases
from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.read import LOG_LIMIT, digest, read, read_or_none
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.atomic import make_folder, refuse_links
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths, quarantine_file
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.git_layout import root_of
from yolo_supervisor.system.subprocesses import Result

ATTEMPTS = 2
"""The number of attempts at a repair before a person is asked. The second one has twice the time limit."""

COMPLIANCE, CHECKS = "contract_compliance", "required_checks"
"""The gates that can be repaired: by generating the contract again, and by running the checks again."""

GIT_LIMIT_S = 30.0

GRACE_S = 2.0
"""The grace period of a check that reached its time limit, in seconds."""

TEXT = 2000
"""The largest part of a text from another program in an answer, in characters."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A gate and the task that it is checked for. A ``task`` that is no number counts as task 0."""

    gate: str
    phase: int
    plan: int
    task: str

    @property
    def number(self) -> int:
        return contracts.integer(self.task) or 0

    @property
    def task_id(self) -> str:
        return f"{self.phase}-{self.plan}-T{self.number}"

    @property
    def key(self) -> str:
        return f"{self.gate}/{self.task_id}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of a command of a contract.

    ``exit`` is None at the time limit, and if it could not be run.
    """

    check: str
    exit: int | None
    limit_s: float
    said: str = ""  # a key of --json, as all fields of an answer
    """The end of its stderr, or the reason why it could not be run."""
    timed_out: bool = False


Word = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A gate's answer, with the keys of the plugin."""

    gate: str
    result: Word
    evidence: str
    autonomy: str
    ts: str
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The result of a repair."""

    answer: Answer
    """The last answer of the gate."""
    attempts: int
    hindrance: str | None = None
    """The reason why the contract could not be generated again."""
    report_error: str | None = None
    """The reason why the escalation could not be written to the journal."""

    @property
    def repaired(self) -> bool:
        return self.answer.result == "pass"

    @property
    def reason(self) -> str | None:
        if self.answer.result == "skip":
            return self.answer.evidence
        if self.repaired:
            return None if self.attempts else "it passes as it is"
        return f"{'max retries exhausted' if self.attempts else 'not repairable'}, escalated to lead"


@dataclass(frozen=True, kw_only=True)
class GateInput:
    """The input of a gate."""

    question: Question
    paths: Paths
    config: bytes
    limit_s: float
    """The time limit of each command."""
    checks: list[Check] = field(default_factory=list)
    """The results of the commands, added by the gate."""

    def contract(self) -> bytes | None:
        """The contract's bytes, empty if it cannot be read; None if there is no such file."""
        try:
            return read(contract_path(self.paths, self.question))
        except OSError:
            return b""

    def setting(self, key: str, default: str) -> str:
        return text_or_none((load_object(self.config) or {}).get(key)) or default


Verdict = tuple[bool, str]
"""Whether the gate passes, and the evidence."""


class Gates:
    """The gates of one project. The store is opened only to write."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._open = False

    async def ask(self, question: Question, attempt: int = 1) -> Answer:
        """Check the gate. Nothing is changed, except by the commands of a contract."""
        config = read_or_none(self._store.paths.plugin_config) or b""
        limit_s = attempt * plugin_config.command_limit_s(config)
        gate_input = GateInput(question=question, paths=self._store.paths, config=config, limit_s=limit_s)
        gate = GATES.get(question.gate)
        result: Word = "skip"
        if not plugin_config.enabled(config, plugin_config.HARD_GATES):
            evidence = "v2_hard_gates=false"
        else:
            passed, evidence = await gate(gate_input) if gate else (False, f"unknown gate type: {question.gate}")
            result = "pass" if passed else "fail"
        return Answer(
            gate=question.gate,
            result=result,
            evidence=_short(evidence),
            autonomy=gate_input.setting("autonomy", "unknown"),
            ts=self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            checks=tuple(gate_input.checks),
        )

    async def repair(self, question: Question) -> Repair:
        """Repair the cause of a failed gate, if that is possible, and check it again.

        Escalate if it still fails. The first attempt at ``required_checks`` is also the first check, so that the
        commands do not run in excess.
        """
        answer = None if question.gate == CHECKS else await self.ask(question)
        attempts, hindrance = 0, None
        while (answer is None or answer.result == "fail") and question.gate in (COMPLIANCE, CHECKS):
            if attempts == ATTEMPTS:
                break
            attempts += 1
            if answer is not None and question.gate == COMPLIANCE:
                hindrance = self._repair_contract(question, answer.evidence)
            answer = await self.ask(question, attempts)
        assert answer is not None
        if answer.result != "fail":
            return Repair(answer=answer, attempts=attempts if answer.result == "pass" else 0)
        report_error = self._escalate(question, answer, attempts, hindrance)
        return Repair(answer=answer, attempts=attempts, hindrance=hindrance, report_error=report_error)

    def _repair_contract(self, question: Question, flaw: str) -> str | None:
        """Generate the contract again, if that makes the gate pass; otherwise return the reason."""
        try:
            generated = regenerated(self._store.paths.planning, question)
            if isinstance(generated, str):
                return generated
            source, data = generated
            passed, evidence = compliance(data, question.number)
            if not passed:
                return f"by the plan, too: {evidence}"
            return self._replace(question, data, flaw, source)
        except (OSError, Refused, Busy) as error:
            return str(error)

    def _replace(self, question: Question, data: bytes, flaw: str, source: Path) -> str | None:
        store, path = self._opened(), contract_path(self._store.paths, question)
        for checked in (path.parent, path):
            refuse_links(store.disk, checked)
        make_folder(store.disk, path.parent, 0o777)
        before = store.disk.read(path)
        evidence: dict[str, Any] = {"plan": str(source)}
        if before:
            copy = quarantine_file(store.paths.quarantine, path.name, before)
            evidence["copy"] = f"quarantine/{copy.name}"
            aside = quarantine(
                key=f"{contracts.FOLDER}/{path.name}", path=copy, data=before,
                reason=f"{flaw}: it is generated again", evidence={"file": str(path), "copy": evidence["copy"]},
            )  # fmt: skip
            if store.commit(aside, "cli") is Outcome.BUSY:
                return "the store is being written to"
        action = notes.regenerate_contract(
            key=question.key, path=path, expected_digest=digest(before), data=data, reason=flaw, evidence=evidence
        )
        outcome = store.commit(action, "cli")
        return None if outcome is Outcome.DONE else f"the contract could not be written: {outcome}"

    def _escalate(self, question: Question, answer: Answer, attempts: int, hindrance: str | None) -> str | None:
        """Escalate, also to the plugin's event log. Return the reason if that fails."""
        note = Escalate(
            kind="gate",
            code=AlertCode.GATE_FAILED,
            key=question.key,
            reason=f"{answer.evidence}{f' ({hindrance})' if hindrance else ''}",
            evidence={
                "phase": question.phase,
                "plan": question.plan,
                "task": _short(question.task),
                "task_id": question.task_id,
                "gate": _short(question.gate),
                "attempts": attempts,
                "owner": "lead",
                "next_action": "investigate_and_fix" if attempts else "manual_intervention",
            },
        )
        try:
            self._opened().note(note, "cli")
        except (OSError, Refused, Busy) as error:
            return str(error)
        return None

    def _opened(self) -> Store:
        if not self._open:
            self._store.open()
            self._open = True
        return self._store


# -- contracts ---------------------------------------------------------------------------------------------------


def contract_path(paths: Paths, question: Question) -> Path:
    return paths.planning / contracts.path_of(question.phase, question.plan)


def compliance(contract: bytes | None, task: int) -> Verdict:
    """Whether the contract is as it was generated, and has this task."""
    if contract is None:
        return False, "contract file not found"
    document = contracts.load(contract)
    if document is None:
        return False, "invalid contract JSON"
    if not contracts.intact(contract):
        return False, "contract hash mismatch"
    count = document.get("task_count")
    count = count if type(count) is int else 0
    if not 1 <= task <= count:
        return False, f"task {task} outside range 1-{count}"
    return True, "hash verified, task in range"


def regenerated(planning: Path, question: Question) -> tuple[Path, bytes] | str:
    """The plan's file and the contract generated from it, or the reason why there is none.

    A plan that names another number, or two plans that differ, are refused: nothing is guessed.
    """
    name = f"plan {question.phase}-{question.plan}"
    config = read_or_none(planning / plugin.CONFIG) or b""
    if not (
        any(plugin_config.enabled(config, flag) for flag in (plugin_config.HARD_CONTRACTS, plugin_config.CONTRACT_LITE))
    ):
        return "neither v2_hard_contracts nor v3_contract_lite is set, so no contracts are generated"
    by_place = (
        [path for number, path in _of_plans(folders, question.phase, "PLAN") if number == question.plan]
        for folders in _places(planning, question.phase)
    )
    files = next(filter(None, by_place), [])
    if not files:
        return f"there is no file of {name}"
    generated = {path: contracts.contract(read_or_none(path) or b"", config) for path in files}
    matching = {path: data for path, data in generated.items() if data is not None and _is_of(data, question)}
    if not matching:
        return f"{files[0].name} does not contain the numbers of {name}"
    if len(set(matching.values())) > 1:
        files_text = ", ".join(sorted(map(str, matching)))
        return f"there are {len(matching)} files of {name}, and they differ: {files_text}"
    return next(iter(matching.items()))


def _is_of(contract: bytes, question: Question) -> bool:
    document = contracts.load(contract) or {}
    return (document.get("phase"), document.get("plan")) == (question.phase, question.plan)


def _listed(gate_input: GateInput, key: str, name: str) -> tuple[list[Any], str]:
    """A list in the contract, and the evidence with which the gate passes if the list is empty."""
    data = gate_input.contract()
    contract = contracts.load(data) if data is not None else {}
    if data is None or contract is None:
        return [], "no contract, fail-open" if data is None else "invalid contract JSON, fail-open"
    items = contract.get(key)
    return items if isinstance(items, list) else [], f"no {name} defined"


# -- the files of phases and plans ----------------------------------------------------------------------------------

_PHASE = re.compile(r"([0-9]{1,9})-.+")
_OF_PLAN = re.compile(r"(?:([0-9]{1,9})-)?([0-9]{1,9})-(PLAN|SUMMARY)\.md")
_VERIFICATION = re.compile(r"(?:([0-9]{1,9})-)?VERIFICATION\.md")


def _places(planning: Path, phase: int) -> Iterator[list[Path]]:
    """The folders of the phase in the active milestone, if there is one, then those in ``phases/``."""
    slug = (read_or_none(planning / "ACTIVE") or b"").decode("utf-8", "replace").strip()
    roots = [planning / plugin.PHASES]
    if slug not in ("", ".", "..") and Path(slug).name == slug:
        roots.insert(0, planning / "milestones" / slug / plugin.PHASES)
    for root in roots:
        matches = [root / name for name in names(root) if (match := _PHASE.fullmatch(name)) and int(match[1]) == phase]
        if folders := [folder for folder in matches if os.path.isdir(folder)]:
            yield folders


def _of_plans(folders: list[Path], phase: int, kind: str) -> Iterator[tuple[int, Path]]:
    """The plans or summaries of a phase, by number: ``02-PLAN.md`` and ``01-02-PLAN.md`` are the same."""
    for path in _within(folders):
        match = _OF_PLAN.fullmatch(path.name)
        if match and match[3] == kind and int(match[1] or phase) == phase:
            yield int(match[2]), path


def _within(folders: list[Path]) -> Iterator[Path]:
    yield from (folder / name for folder in folders for name in names(folder))


# -- the gates ---------------------------------------------------------------------------------------------------


async def _contract_compliance(gate_input: GateInput) -> Verdict:
    return compliance(gate_input.contract(), gate_input.question.number)


async def _protected_file(gate_input: GateInput) -> Verdict:
    items, none = _listed(gate_input, "forbidden_paths", "forbidden paths")
    forbidden = [posixpath.normpath(path) for path in items if isinstance(path, str) and path.strip("/")]
    if not forbidden:
        return True, none
    root = root_of(gate_input.paths.project)
    if root is None:
        return True, "no forbidden files staged"
    answer = await _git(gate_input, "diff", "--cached", "--name-only", "--no-renames", "-z")
    if answer.exit != 0:
        return False, f"git cannot list the staged files: {_error(answer)}"
    inside = gate_input.paths.project.relative_to(root).as_posix()
    staged = [name for name in os.fsdecode(answer.stdout).split("\0") if name]
    blocked = [name for name in staged if any(_under(name, path, inside) for path in forbidden)]
    if blocked:
        return False, f"forbidden files staged: {' '.join(blocked)}"
    return True, "no forbidden files staged"


def _under(name: str, path: str, inside: str) -> bool:
    """Whether a staged file is the path or in it. The path may be relative to the repository or to the project."""
    places = (path, posixpath.normpath(f"{inside}/{path}"))
    return any(name == place or name.startswith(f"{place}/") for place in places)


async def _required_checks(gate_input: GateInput) -> Verdict:
    items, none = _listed(gate_input, "verification_checks", "verification checks")
    checks = [check for check in items if isinstance(check, str)]
    if not checks:
        return True, none
    for check in checks:
        gate_input.checks.append(await _run(check, gate_input))
    failed = [
        f"{_short(result.check)}{f' (took longer than {result.limit_s:g} s)' if result.timed_out else ''};"
        for result in gate_input.checks
        if result.exit != 0
    ]
    return (False, f"checks failed: {' '.join(failed)}") if failed else (True, "all verification checks passed")


async def _run(check: str, gate_input: GateInput) -> Check:
    try:
        result = await subprocesses.run(
            ["bash", "-c", check], gate_input.limit_s, folder=gate_input.paths.project, grace_s=GRACE_S
        )
    except (OSError, ValueError) as error:  # no bash, or an argument that no program can be given
        return Check(check=check, exit=None, limit_s=gate_input.limit_s, said=f"it cannot be run: {error}")
    error_text = result.stderr.decode("utf-8", "replace").strip()[-TEXT:]
    return Check(
        check=check, exit=result.exit, limit_s=gate_input.limit_s, said=error_text, timed_out=result.exit is None
    )


_SUBJECT = re.compile(r"(feat|fix|test|refactor|perf|docs|style|chore)\(.+\): .+")


async def _commit_hygiene(gate_input: GateInput) -> Verdict:
    if root_of(gate_input.paths.project) is None:
        return True, "no commits to check"
    born = await _git(gate_input, "rev-parse", "--verify", "--quiet", "HEAD")
    if born.exit == 1:
        return True, "no commits to check"
    answer = await _git(gate_input, "log", "-1", "--no-show-signature", "--encoding=UTF-8", "--pretty=format:%s")
    if answer.exit != 0:
        return False, f"git cannot show the last commit: {_error(answer)}"
    subject = answer.stdout.decode("utf-8", "replace").strip()
    if not subject:
        return True, "no commits to check"
    return (True, "commit format valid") if _SUBJECT.match(subject) else (False, f"commit format invalid: {subject}")


async def _artifact_persistence(gate_input: GateInput) -> Verdict:
    phase = gate_input.question.phase
    folders = next(_places(gate_input.paths.planning, phase), None)
    if folders is None:
        return True, "phase dir not found" if gate_input.paths.phases.is_dir() else "no phases dir"
    plans = {number for number, _ in _of_plans(folders, phase, "PLAN") if number < gate_input.question.plan}
    written = {number for number, path in _of_plans(folders, phase, "SUMMARY") if (read_or_none(path) or b"").strip()}
    missing = sorted(plans - written)
    if missing:
        return False, f"missing SUMMARY.md for: {' '.join(f'plan-{number}' for number in missing)}"
    return True, "all prior plan artifacts present"


_PASSED = re.compile(r"(?<!\b0 )\bpass")
_FAILED = re.compile(r"(?<!\b0 )\bfail")


async def _verification_threshold(gate_input: GateInput) -> Verdict:
    phase = gate_input.question.phase
    folders = next(_places(gate_input.paths.planning, phase), None)
    if folders is None:
        return True, "phase dir not found"
    files = [
        path
        for path in _within(folders)
        if (match := _VERIFICATION.fullmatch(path.name)) and int(match[1] or phase) == phase
    ]
    if not files:
        tier = gate_input.setting("verification_tier", "standard")
        if tier in ("quick", "skip"):
            return True, f"verification not required (tier={tier})"
        return False, f"VERIFICATION.md missing (tier={tier})"
    verdicts = [_verification(read_or_none(path) or b"") for path in files]
    return next((verdict for verdict in verdicts if not verdict[0]), verdicts[0])


def _verification(data: bytes) -> Verdict:
    """The result of a verification: by its verdict if it has one, else by the words in it."""
    fields = phases.front_matter(data)
    result = (fields.get("result") or fields.get("status") or "").lower()
    text = result if result in ("pass", "passed", "fail", "failed") else data.decode("utf-8", "replace").lower()
    if result == "partial":
        return True, "verification partial"
    if _PASSED.search(text):
        return True, "verification passed"
    return (False, "verification failed") if _FAILED.search(text) else (True, "verification status unclear, fail-open")


async def _forbidden_commands(gate_input: GateInput) -> Verdict:
    items, none = _listed(gate_input, "forbidden_commands", "forbidden commands")
    if not items:
        return True, none
    log = read_or_none(gate_input.paths.planning / ".event-log.jsonl", LOG_LIMIT)
    if log is None:
        return True, "no event log, fail-open"
    for line in reversed(log.splitlines()[-5:]):
        if b'"bash_guard_block"' in line:
            preview = text_or_none((load_object(line) or {}).get("command_preview")) or "unknown"
            return False, f"destructive command attempted: {preview}"
    return True, "no forbidden command violations"


GATES: Mapping[str, Callable[[GateInput], Awaitable[Verdict]]] = {
    COMPLIANCE: _contract_compliance,
    "protected_file": _protected_file,
    CHECKS: _required_checks,
    "commit_hygiene": _commit_hygiene,
    "artifact_persistence": _artifact_persistence,
    "verification_threshold": _verification_threshold,
    "forbidden_commands": _forbidden_commands,
}


# -- asking git ----------------------------------------------------------------------------------------------------


async def _git(gate_input: GateInput, *arguments: str) -> Result:
    """Run git without taking a lock."""
    try:
        return await subprocesses.run(
            ["git", "--no-optional-locks", *arguments], GIT_LIMIT_S, folder=gate_input.paths.project
        )
    except OSError as error:
        return Result(127, b"", f"git cannot be run: {error.strerror}".encode())


def _error(answer: Result) -> str:
    if answer.exit is None:
        return f"it took longer than {GIT_LIMIT_S:g} s"
    text = answer.stderr.decode("utf-8", "replace").strip()
    return text.partition("\n")[0] or f"exit code {answer.exit}"


def _short(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]}…"
