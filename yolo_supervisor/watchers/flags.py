"""Watches the plugin's feature flags, and disables those under which too much fails."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from yolo_supervisor.actions.agents import Terminate
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.flags import Disable, Enable, FlagFoundOn
from yolo_supervisor.clock import until_next
from yolo_supervisor.config import Config
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.inventory.flag_outcomes import Crossed, Flag, Flags, Look
from yolo_supervisor.policy.failure_rate import Rule
from yolo_supervisor.watchers.base import Remediation

NAME = "flags"

SOON_S = 0.05
"""The pause while a log has more unread lines than one observation reads."""


def decide(look: Look) -> list[Remediation]:
    """Disable each flag that fails too often, after the flags that need it.

    A person is alerted, and only a person enables it again, unless a probation is configured.
    """
    flags = {flag.name: flag for flag in look.flags}
    counted: list[Remediation] = [(look.count,)] if look.count else []
    return counted + [remediation for flag in look.flags if (remediation := _about(flag, flags, look))]


def _about(flag: Flag, flags: Mapping[str, Flag], look: Look) -> Remediation:
    if not plugin_config.is_flag(flag.name):
        return ()  # a setting of the plugin, not a feature flag: counted errors are no reason to change it
    if flag.enabled and flag.off is not None:
        return (
            FlagFoundOn(key=flag.name, reason="it was switched off, and somebody has switched it on again by hand"),
        )
    if flag.crossed and flag.enabled and flag.name in plugin_config.OURS:
        needed = f"the supervisor needs it itself ({plugin_config.OURS[flag.name]}), so that is left to you"
        reason = f"{_why(flag.crossed, look.rule)}; {needed}: yolo-supervisor flag disable {flag.name}"
        return (_tell(flag, AlertCode.FLAG_LEFT_ON, reason),)
    if flag.crossed and flag.enabled:
        return _switch_off(flag, flag.crossed, flags, look)
    if flag.crossed and not look.readable:
        reason = f"{_why(flag.crossed, look.rule)}; it stays as it is: the config.json cannot be read"
        return (_tell(flag, AlertCode.FLAG_CONFIG_UNREADABLE, reason),)
    if flag.off is not None and flag.off.by == NAME and flag.enabled is False:
        if flag.off.left_s == 0.0 and all(
            flags[n].enabled for d, n in plugin_config.IN_VAIN if d == flag.name and n in flags
        ):
            reason = "its probation begins: if it fails again, it is switched off again"
            return (Enable(key=flag.name, path=look.config, reason=reason, evidence={"probation": True}),)
        return (_tell(flag, AlertCode.FLAG_OFF, _off(flag.name, flag.off.reason)),)
    return ()


def _switch_off(flag: Flag, crossed: Crossed, flags: Mapping[str, Flag], look: Look) -> Remediation:
    why = _why(crossed, look.rule)
    dependents = [
        (flags[name], vain)
        for (name, needed), vain in plugin_config.IN_VAIN.items()
        if needed == flag.name and name in flags
    ]
    first = [
        Disable(key=each.name, path=look.config, reason=f"{flag.name}, which it needs, is switched off: {vain}",
                evidence=_evidence(each.errors, each.samples, look) | {"needs": flag.name})
        for each, vain in dependents
        if each.enabled
    ]  # fmt: skip
    evidence = _evidence(crossed.errors, crossed.samples, look) | {"e_value": min(crossed.value, 1e12)}
    evidence |= {"of_window": [flag.errors, flag.samples]}
    disable = Disable(key=flag.name, path=look.config, reason=why, evidence=evidence)
    return (*first, disable, _tell(flag, AlertCode.FLAG_OFF, _off(flag.name, why)))


def _evidence(errors: int, samples: int, look: Look) -> dict[str, object]:
    rate = round(errors / samples, 3) if samples else 0.0
    return {"errors": errors, "samples": samples, "error_rate": rate, "since_s": look.now_s, "boot": look.boot}


def _why(crossed: Crossed, rule: Rule) -> str:
    return (
        f"{crossed.errors} of its last {crossed.samples} outcomes were errors: more than {rule.limit:.0%} of them are, "
        f"with a risk of {rule.alpha:.0%} to be wrong"
    )


def _off(name: str, why: str) -> str:
    return f"it is switched off, since {why}; when that is mended: yolo-supervisor flag enable {shlex.quote(name)}"


def _tell(flag: Flag, code: AlertCode, reason: str) -> Escalate:
    return Escalate(kind="flag", code=code, key=flag.name, reason=reason)


class FlagsWatcher:
    name = NAME

    def __init__(self, config: Callable[[], Config], flags: Flags) -> None:
        self._config = config
        self._flags = flags
        self._due_s: float | None = None
        """Seconds until a probation begins, from the last observation."""

    @property
    def interval_s(self) -> float:
        return self._config().flags.interval_s

    def rest_s(self) -> float:
        """A short pause while there is more to read, or until the next probation begins, if sooner."""
        if self._flags.behind:
            return SOON_S
        rest_s = until_next(self.interval_s)
        return rest_s if self._due_s is None else min(rest_s, max(SOON_S, self._due_s))

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        look = self._flags.look(now)
        waiting = (flag.off.left_s for flag in look.flags if flag.off is not None and flag.enabled is False)
        self._due_s = min((left_s for left_s in waiting if left_s), default=None)
        return decide(look)

    async def objection(self, action: Terminate) -> str | None:
        return "no flag is a reason to end a process"
