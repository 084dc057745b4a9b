"""Several deaths of one cause in a short time: a common fault rather than one of each agent."""

from __future__ import annotations

from collections.abc import Mapping

from yolo_supervisor.formats.crash_report import CrashCause


class CrashBursts:
    """Counts deaths by cause; a burst is ``MIN_DEATHS`` of one cause within ``WINDOW_S``."""

    WINDOW_S = 180.0
    MIN_DEATHS = 3

    def __init__(self) -> None:
        self._deaths: dict[CrashCause, dict[str, float]] = {}
        """By cause: each agent that died of it, and when (monotonic seconds)."""
        self._reported: dict[CrashCause, tuple[int, str]] = {}
        """By cause: the deaths when the burst was last reported, and the sentence."""

    def add(self, cause: CrashCause, agent: str, now_s: float) -> None:
        if cause not in (CrashCause.UNKNOWN, CrashCause.CLEAN_EXIT):
            self._deaths.setdefault(cause, {})[agent] = now_s

    def active(self, now_s: float) -> Mapping[CrashCause, str]:
        """The bursts of now, one sentence each.

        A sentence changes only when the deaths have doubled.
        """
        for cause, deaths in self._deaths.items():
            for agent in [agent for agent, at_s in deaths.items() if now_s - at_s > self.WINDOW_S]:
                del deaths[agent]
            reported, _ = self._reported.get(cause, (0, ""))
            if not deaths:
                self._reported.pop(cause, None)
            elif len(deaths) >= max(self.MIN_DEATHS, 2 * reported):
                span_s = max(deaths.values()) - min(deaths.values())
                span = f"{span_s / 60:.0f} minutes" if span_s >= 90 else f"{span_s:.0f} seconds"
                self._reported[cause] = len(deaths), f"{len(deaths)} agents died of one cause ({cause}) within {span}"
        return {cause: sentence for cause, (_, sentence) in self._reported.items()}
