"""How the rules judge the deaths in ``tests/crash_cases.py``: the confusion matrix, and what they get wrong.

python tests/bench/crashes.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from crash_cases import BLIND, NOW, OTHERS, TALK, Case

from yolo_supervisor.formats import transcripts
from yolo_supervisor.formats.crash_report import CrashCause, Evidence, Verdict
from yolo_supervisor.policy.crash_rules import classify


def verdict(case: Case) -> Verdict:
    transcript = "\n".join(case.transcript).encode()
    evidence = Evidence(
        at=NOW, status=case.status, signal=case.signal, oom=case.oom, pane=tuple(case.pane.splitlines()),
        tail=transcripts.tail(transcript[:-20] if case.cut else transcript), hooks=case.hooks,
    )  # fmt: skip
    return classify(evidence)


def main() -> None:
    for name, cases in (("blind", BLIND), ("all", [*BLIND, *OTHERS, *TALK])):
        judged = [(case, verdict(case)) for case in cases]
        counts = Counter((case.cause, str(found.cause)) for case, found in judged)
        right = sum(case.cause == found.cause for case, found in judged)
        print(f"{name}: {right} of {len(cases)} right\n\n{'is, judged':<18}" + "".join(f"{c:>18}" for c in CrashCause))
        for row in CrashCause:
            print(f"{row:<18}" + "".join(f"{counts[row, column] or '.':>18}" for column in CrashCause))
        for case, found in judged:
            if case.cause != found.cause:
                print(f"wrong: {case.name}: {case.cause}, not {found.cause} ({found.confidence:.2f}: {found.reason})")
        print()


if __name__ == "__main__":
    main()
