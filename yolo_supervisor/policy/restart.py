"""The decision whether a dead agent's client is started again, and when.

It depends on its arguments only. The facts are asked again right before a start, and so is this decision.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from yolo_supervisor.clock import pace_s, pause_s
from yolo_supervisor.config import RestartConfig, RestartPolicy
from yolo_supervisor.formats.crash_report import DELIBERATE_SIGNALS, FAULT_SIGNALS, CrashCause, signal_name

LOOK_AGAIN_S = 5.0
"""The pause after which a fact that is unknown, or may pass soon, is asked again."""

CRASH_SIGNALS = FAULT_SIGNALS | {signal.SIGKILL}
"""The signals that end an agent against its will. A SIGKILL that is meant to stay is ``agent hold``."""

DELIBERATE_CODES = frozenset(128 + number for number in DELIBERATE_SIGNALS)
"""The exit codes of programs and shells that such a signal has ended."""


class RestartCode(StrEnum):
    """The reason of a decision."""

    NEVER_BY_POLICY = "never_by_policy"
    HELD = "held"
    """By hand: ``agent hold``."""
    CLEAN_EXIT = "clean_exit"
    DELIBERATE_SIGNAL = "deliberate_signal"
    ENDED_BY_SUPERVISOR = "ended_by_supervisor"
    STOPPED_IN_CLIENT = "stopped_in_client"
    """A person ended the session, or closed its pane."""
    UNKNOWN_END = "unknown_end"
    """Its exit is not known, or says neither crash nor order."""
    QUOTA = "quota"
    OVERFLOW_TWICE = "overflow_twice"
    SAME_CRASH = "same_crash"
    NO_FOLDER = "no_folder"
    NO_SESSION = "no_session"
    NO_TRANSCRIPT = "no_transcript"
    NO_TURN = "no_turn"
    """Its transcript has no turn: there is nothing to resume."""
    MEMORY = "memory"
    TOO_MANY = "too_many"
    BACKOFF = "backoff"
    HOST_PACE = "host_pace"
    STORM = "storm"
    HOSTED = "hosted"
    """The client's own daemon resumes it."""
    IN_PROCESS = "in_process"
    """It lives in its lead's process, and comes back with that."""
    NO_LAUNCH = "no_launch"
    """The command that started it is not known."""
    TOO_LARGE = "too_large"
    REPLACED = "replaced"
    """Its team does not list it any more, or lists another agent under its name."""
    LEAD_GONE = "lead_gone"
    """Its lead has ended: without one it would be a stray."""
    WORK_TAKEN = "work_taken"
    """Other agents have begun or finished all that it was working on."""
    LIVE_ELSEWHERE = "live_elsewhere"
    """Another process runs its session."""
    START = "start"


class Verdict(StrEnum):
    START = "start"
    WAIT = "wait"
    """Not now; asked again after ``wait_s``."""
    NEVER = "never"
    """No start follows this death."""
    PERSON = "person"
    """No start follows this death unless a person decides otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartFacts:
    """The known facts about one dead agent. None stands for unknown, unless a field says otherwise."""

    name: str
    role: str
    died_s: float
    """The age of its death, in seconds."""
    status: int | None = None
    """Its exit code; if this and ``signal`` are None, its exit is unknown."""
    signal: int | None = None
    oom: bool = False
    """Whether the kernel has recorded that it killed it for want of memory."""
    cause: CrashCause | None = None
    by_supervisor: bool = False
    """Whether the supervisor has ended it."""
    stalled: bool = False
    """Whether the supervisor has ended it because it had stalled."""
    held: bool = False
    deliberate: bool = False
    """Whether a person has ended the session in the client, or closed its pane."""
    rebooted: bool = False
    """Whether the machine was rebooted since."""
    hosted: bool = False
    in_process: bool = False
    headless: bool = False
    has_work: bool = False
    """Whether a task waits for it."""
    replaced: bool = False
    lead_gone: bool = False
    work_taken: bool = False
    hold_s: float | None = None
    """The rest of a rate-limit window; None if there is none."""
    overflows: int = 0
    """The context overflows of its session, with this death."""
    last_crash: tuple[CrashCause, float] | None = None
    """The cause of its last crash before this one (``crash_of``), and how long that was before this death.

    None if there was none.
    """
    folder_exists: bool | None = True
    session: bool = True
    """Whether the id of its session is known."""
    transcript: Literal["missing", "no_turn", "ok", "unknown"] = "unknown"
    launch_known: bool = False
    live_elsewhere: bool | None = False
    """Whether another process runs its session."""
    context_tokens: int | None = None
    free_mib: int | None = None
    starts: tuple[float, ...] = ()
    """The ages of its starts since its last reset, by hand or by progress, in seconds, the newest last."""
    progressed_s: float | None = None
    """For how long it made progress after its last start; None if it made none."""
    host_starts: tuple[float, ...] = ()
    """The ages of all starts by this user on this machine, in seconds."""
    storm_left_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartDecision:
    verdict: Verdict
    code: RestartCode
    text: str
    """One sentence for people."""
    wait_s: float = 0.0
    """For WAIT: the time after which to ask again."""
    attempt: int = 1
    """The number of the start that is due, from 1."""
    of: int = 1
    fresh: bool = False
    """Whether to start with an empty conversation."""


def policy_for(name: str, role: str, rules: RestartConfig) -> RestartPolicy:
    """The policy of an agent: by its name, else by its role, else that of all agents."""
    return rules.agents.get(name) or rules.agents.get(role) or rules.policy


def may_be_started(name: str, role: str, rules: RestartConfig, rebooted: bool = False) -> bool:
    """Whether any end of the agent is followed by a start: by its policy, or since the machine was ``rebooted``."""
    if policy_for(name, role, rules) != "never":
        return True
    return rebooted and rules.restore == "boot" and "never" not in (rules.agents.get(name), rules.agents.get(role))


def restarts_on_stall(name: str, role: str, rules: RestartConfig) -> bool:
    """Whether an agent is ended and started again when it stalls."""
    return policy_for(name, role, rules) != "never" and (name in rules.on_stall or role in rules.on_stall)


def crash_of(facts: RestartFacts) -> CrashCause | None:
    """The cause to remember as the agent's last crash; None if a second such end would prove no defect.

    A rate limit passes, and a SIGKILL comes from outside.
    """
    if facts.by_supervisor or facts.stalled:
        return None
    if facts.cause in (None, CrashCause.CLEAN_EXIT, CrashCause.RATE_LIMITED):
        return None
    numbers = {facts.signal, facts.status - 128 if facts.status is not None else None}
    if facts.cause is CrashCause.SIGNAL and not numbers & FAULT_SIGNALS:
        return None
    return facts.cause


def decide(facts: RestartFacts, rules: RestartConfig, chance: float, *, poison_s: float) -> RestartDecision:
    """The decision about one dead agent.

    ``chance`` (from 0 to 1, constant for one attempt) decides the jitter of the backoff. The same crash twice within
    ``poison_s`` needs a person.
    """
    at_death = [age for age in facts.starts if age - facts.died_s < rules.period_s]
    attempt = min(len(at_death) + 1, rules.max_starts)

    def decision(verdict: Verdict, code: RestartCode, text: str, wait_s: float = 0.0) -> RestartDecision:
        return RestartDecision(
            verdict=verdict, code=code, text=text, wait_s=wait_s, attempt=attempt, of=rules.max_starts,
            fresh=verdict in (Verdict.START, Verdict.WAIT) and _too_large(facts, rules),
        )  # fmt: skip

    if (never := _never(facts, rules)) is not None:
        return decision(Verdict.NEVER, *never)
    if (person := _person(facts, rules, len(at_death), poison_s)) is not None:
        return decision(Verdict.PERSON, *person)
    wait_s, code, text = max(_waits(facts, rules, chance), default=(0.0, RestartCode.START, ""), key=lambda w: w[0])
    if wait_s > 0:
        return decision(Verdict.WAIT, code, text, wait_s)
    return decision(Verdict.START, RestartCode.START, f"start {attempt} of {rules.max_starts}")


def decide_by_hand(facts: RestartFacts) -> RestartDecision:
    """The decision about a dead agent that a person wants to be started now.

    Policy, hold and the number of starts do not count: only what makes a start impossible, or harmful.
    """

    def decision(verdict: Verdict, code: RestartCode, text: str) -> RestartDecision:
        return RestartDecision(verdict=verdict, code=code, text=text, attempt=len(facts.starts) + 1)

    refusal = _impossible(facts) or (None if facts.launch_known else _NOT_KNOWN)
    if refusal is None and facts.live_elsewhere:
        refusal = RestartCode.LIVE_ELSEWHERE, "another process runs its session"
    if refusal is not None:
        return decision(Verdict.NEVER, *refusal)
    for unknown, code, text in _unknown(facts):
        if unknown:
            return decision(Verdict.WAIT, code, text)
    return decision(Verdict.START, RestartCode.START, "started by hand")


_NOT_KNOWN = (RestartCode.NO_LAUNCH, "it is not known how it was started")


def _impossible(facts: RestartFacts) -> tuple[RestartCode, str] | None:
    """The reason why its client cannot be started, or must not be; None if there is none."""
    if facts.in_process:
        return RestartCode.IN_PROCESS, "it lives in the process of its lead"
    if facts.hosted:
        return RestartCode.HOSTED, "Claude Code's own daemon resumes it"
    if not facts.session:
        return RestartCode.NO_SESSION, "the id of its session is not known"
    if facts.folder_exists is False:
        return RestartCode.NO_FOLDER, "its folder does not exist any more"
    if facts.transcript == "missing":
        return RestartCode.NO_TRANSCRIPT, "its transcript does not exist any more"
    if facts.transcript == "no_turn":
        return RestartCode.NO_TURN, "its transcript has no turn to resume"
    return None


def _unknown(facts: RestartFacts) -> tuple[tuple[bool, RestartCode, str], ...]:
    """The facts without which no client is started: whether each is unknown, with the reason."""
    return (
        (facts.folder_exists is None, RestartCode.NO_FOLDER, "it is not known whether its folder exists"),
        (facts.transcript == "unknown", RestartCode.NO_TRANSCRIPT, "its transcript cannot be read now"),
        (
            facts.live_elsewhere is None,
            RestartCode.LIVE_ELSEWHERE,
            "it is not known whether another process runs its session",
        ),
    )


def _never(facts: RestartFacts, rules: RestartConfig) -> tuple[RestartCode, str] | None:
    """The reason why this death is not followed by a start; None if there is none."""
    policy = policy_for(facts.name, facts.role, rules)
    for_boot = facts.rebooted and rules.restore == "boot"
    for_stall = facts.stalled and restarts_on_stall(facts.name, facts.role, rules)
    impossible = _impossible(facts)
    if impossible is not None and (facts.in_process or facts.hosted):
        return impossible
    if not may_be_started(facts.name, facts.role, rules, facts.rebooted):
        return RestartCode.NEVER_BY_POLICY, "its restart policy is never"
    if facts.held:
        return RestartCode.HELD, "it is held by hand"
    if facts.deliberate:
        return RestartCode.STOPPED_IN_CLIENT, "a person has ended its session"
    if (facts.by_supervisor or facts.stalled) and not for_stall:
        return RestartCode.ENDED_BY_SUPERVISOR, "the supervisor has ended it"
    if not (for_stall or for_boot) and (no_crash := _no_crash(facts, policy)) is not None:
        return no_crash
    if facts.replaced:
        return RestartCode.REPLACED, "its team does not list it any more, or lists another agent under its name"
    if facts.lead_gone:
        return RestartCode.LEAD_GONE, "its lead has ended"
    if facts.work_taken:
        return RestartCode.WORK_TAKEN, "other agents have begun or finished all that it was working on"
    if facts.overflows >= 2:
        return RestartCode.OVERFLOW_TWICE, f"its conversation was too long {facts.overflows} times"
    return impossible


def _no_crash(facts: RestartFacts, policy: RestartPolicy) -> tuple[RestartCode, str] | None:
    """The reason why its exit is not one after which the policy starts it again; None if it is."""
    status, number = facts.status, facts.signal
    if (status is None and number is None) or (status is not None and not 0 <= status <= 255):
        return RestartCode.UNKNOWN_END, "its exit is not known"
    if number in DELIBERATE_SIGNALS:
        return RestartCode.DELIBERATE_SIGNAL, f"{signal_name(number)} ended it, which is a request to end"
    if status in DELIBERATE_CODES:
        return RestartCode.DELIBERATE_SIGNAL, f"exit code {status} is that of a request to end"
    if number is not None and number not in CRASH_SIGNALS:
        return RestartCode.UNKNOWN_END, f"{signal_name(number)} is neither a crash nor a request to end"
    if status == 0 and (number is not None or policy != "always" or not facts.headless or not facts.has_work):
        return RestartCode.CLEAN_EXIT, "it ended with exit code 0"
    return None


def _person(facts: RestartFacts, rules: RestartConfig, starts: int, poison_s: float) -> tuple[RestartCode, str] | None:
    """The reason why a person has to decide; None if there is none.

    ``starts`` is the number of starts in the period before its death.
    """
    crash = crash_of(facts)
    if crash is not None and facts.last_crash is not None:
        cause, ago_s = facts.last_crash
        if cause is crash and ago_s < poison_s:
            return RestartCode.SAME_CRASH, f"it crashed twice in the same way ({crash}) within {ago_s:.0f} s"
    if starts >= rules.max_starts:
        return RestartCode.TOO_MANY, f"it was started {starts} times within {rules.period_s:.0f} s, and died again"
    if not facts.launch_known:
        return _NOT_KNOWN
    if _too_large(facts, rules) and rules.when_too_large == "ask":
        limit = rules.max_resume_tokens
        return RestartCode.TOO_LARGE, f"its context has {facts.context_tokens} tokens, more than {limit}"
    return None


def _waits(facts: RestartFacts, rules: RestartConfig, chance: float) -> Iterator[tuple[float, RestartCode, str]]:
    """Each reason to wait, with the time in seconds; 0 for one that does not hold."""
    for unknown, code, text in _unknown(facts):
        if unknown:
            yield LOOK_AGAIN_S, code, text
    if facts.live_elsewhere:
        yield LOOK_AGAIN_S, RestartCode.LIVE_ELSEWHERE, "another process runs its session"
    if facts.free_mib is not None and facts.free_mib < rules.min_free_mib:
        text = f"{facts.free_mib} MiB of memory are available, less than {rules.min_free_mib}"
        yield LOOK_AGAIN_S, RestartCode.MEMORY, text
    yield facts.hold_s or 0.0, RestartCode.QUOTA, "a rate limit or quota has not reset yet"
    yield facts.storm_left_s, RestartCode.STORM, "many agents died at the same time"
    pace_wait_s = pace_s(facts.host_starts, rules.host_pause_s, rules.host_starts, rules.host_period_s)
    yield pace_wait_s, RestartCode.HOST_PACE, "other agents were started just before"
    yield _backoff_s(facts, rules, chance), RestartCode.BACKOFF, "the pause after its last start is not over"


def _backoff_s(facts: RestartFacts, rules: RestartConfig, chance: float) -> float:
    """The rest of the pause after its death, or after a start that brought up no process."""
    progressed = facts.progressed_s is not None and facts.progressed_s >= rules.reset_s
    if not facts.starts or progressed:
        return 0.0
    since_s = min(facts.died_s, facts.starts[-1])
    return max(0.0, pause_s(rules.backoff_s, len(facts.starts), rules.backoff_max_s, chance) - since_s)


def _too_large(facts: RestartFacts, rules: RestartConfig) -> bool:
    return 0 < rules.max_resume_tokens < (facts.context_tokens or 0)
