"""Watches the plugin's feature flags, and disables those that fail too often."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.flags import disable, enable, found_on
from yolo_supervisor.clock import until_next
from yolo_supervisor.config import Config
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.inventory.flag_outcomes import Flag, FlagOutcomes, FlagsObservation
from yolo_supervisor.inventory.flag_record import Detection
from yolo_supervisor.policy.failure_rate import Rule
from yolo_supervisor.watchers.base import Remediation

NAME = "flags"

SOON_S = 0.05
"""The pause while a log has more unread lines than one observation reads."""


def decide(observation: FlagsObservation) -> list[Remediation]:
    """Disable each flag that fails too often, after the flags that need it.

    A person is alerted, and only a person enables it again, unless a probation is configured.
    """
    flags = {flag.name: flag for flag in observation.flags}
    return [remediation for flag in observation.flags if (remediation := _remediation(flag, flags, observation))]


def _remediation(flag: Flag, flags: Mapping[str, Flag], observation: FlagsObservation) -> Remediation:
    if not plugin_config.is_flag(flag.name):
        return ()  # a setting of the plugin, not a feature flag: counted errors are no reason to change it
    if flag.enabled and flag.disabled is not None:
        return (found_on(key=flag.name, reason="it was disabled here and has been enabled by hand since"),)
    if flag.detection and flag.enabled and flag.name in plugin_config.NEEDED_BY_SUPERVISOR:
        needed = f"the supervisor needs it ({plugin_config.NEEDED_BY_SUPERVISOR[flag.name]}), so it stays enabled"
        reason = f"{_why(flag.detection, observation.rule)}; {needed}. To disable it: {_command('disable', flag.name)}"
        return (_alert(flag, AlertCode.FLAG_LEFT_ON, reason),)
    if flag.detection and flag.enabled:
        return _disable(flag, flag.detection, flags, observation)
    if flag.detection and not observation.readable:
        reason = f"{_why(flag.detection, observation.rule)}; it cannot be disabled: the config.json cannot be read"
        return (_alert(flag, AlertCode.FLAG_CONFIG_UNREADABLE, reason),)
    if flag.disabled is not None and flag.disabled.by == NAME and flag.enabled is False:
        if flag.disabled.probation_in_s == 0.0 and _needs_are_met(flag.name, flags):
            reason = "its probation begins: if it fails too often again, it is disabled again"
            return (enable(key=flag.name, path=observation.config_file, reason=reason, evidence={"probation": True}),)
        return (_alert(flag, AlertCode.FLAG_OFF, _disabled(flag.name, flag.disabled.reason)),)
    return ()


def _needs_are_met(name: str, flags: Mapping[str, Flag]) -> bool:
    """Whether the flags that this one needs are enabled, as far as they exist."""
    needed = (needed for dependent, needed in plugin_config.NEEDS if dependent == name)
    return all(flags[other].enabled for other in needed if other in flags)


def _disable(flag: Flag, detection: Detection, flags: Mapping[str, Flag], observation: FlagsObservation) -> Remediation:
    """Disable the flags that need it first: the evidence is that of this flag."""
    dependents = [
        disable(
            key=name,
            path=observation.config_file,
            reason=f"{flag.name}, which it needs, is disabled: {consequence}",
            evidence=_evidence(flags[name].errors, flags[name].samples, observation) | {"needs": flag.name},
        )
        for (name, needed), consequence in plugin_config.NEEDS.items()
        if needed == flag.name and name in flags and flags[name].enabled
    ]
    why = _why(detection, observation.rule)
    evidence = _evidence(detection.errors, detection.samples, observation)
    evidence |= {"e_value": min(detection.e_value, 1e12), "of_window": [flag.errors, flag.samples]}
    switch = disable(key=flag.name, path=observation.config_file, reason=why, evidence=evidence)
    return (*dependents, switch, _alert(flag, AlertCode.FLAG_OFF, _disabled(flag.name, why)))


def _evidence(errors: int, samples: int, observation: FlagsObservation) -> dict[str, object]:
    rate = round(errors / samples, 3) if samples else 0.0
    return {"errors": errors, "samples": samples, "error_rate": rate, **observation.now.fields()}


def _why(detection: Detection, rule: Rule) -> str:
    return (
        f"{detection.errors} of its last {detection.samples} outcomes were errors: its failure rate is above "
        f"{rule.limit:.0%} (risk of a false alarm: at most {rule.alpha:.0%})"
    )


def _disabled(name: str, why: str) -> str:
    return f"it is disabled, since {why}. Once the cause is fixed: {_command('enable', name)}"


def _command(verb: str, name: str) -> str:
    return f"yolo-supervisor flag {verb} {shlex.quote(name)}"


def _alert(flag: Flag, code: AlertCode, reason: str) -> Escalate:
    return Escalate(kind="flag", code=code, key=flag.name, reason=reason)


class FlagsWatcher:
    name = NAME

    def __init__(self, config: Config, outcomes: FlagOutcomes) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._outcomes = outcomes
        self._due_s: float | None = None
        """Seconds until a probation begins, from the last observation."""

    @property
    def interval_s(self) -> float:
        return self.config.flags.interval_s

    def rest_s(self) -> float:
        """A short pause while there is more to read, or until the next probation begins, if sooner."""
        if self._outcomes.behind:
            return SOON_S
        rest_s = until_next(self.interval_s)
        return rest_s if self._due_s is None else min(rest_s, max(SOON_S, self._due_s))

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        observation = self._outcomes.observe(now)
        disabled = (flag.disabled for flag in observation.flags if flag.enabled is False)
        waits = (switch.probation_in_s for switch in disabled if switch is not None)
        self._due_s = min((wait_s for wait_s in waits if wait_s), default=None)
        return decide(observation)

    def save_observations(self) -> bool:
        """Store the new outcomes; they belong to the next observation in any case."""
        return self._outcomes.save()
