"""The confusion matrix of the crash rules over ``tests/support/crash_cases.py``, and each wrong verdict.

python tests/bench/crashes.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.crash_cases import BLIND, NOW, OTHERS, TALK, Case
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
        verdicts = [(case, verdict(case)) for case in cases]
        counts = Counter((case.cause, str(result.cause)) for case, result in verdicts)
        right = sum(case.cause == result.cause for case, result in verdicts)
        print(
            f"{name}: {right} of {len(cases)} right\n\n{'is, classified':<18}" + "".join(f"{c:>18}" for c in CrashCause)
        )
        for row in CrashCause:
            print(f"{row:<18}" + "".join(f"{counts[row, column] or '.':>18}" for column in CrashCause))
        for case, result in verdicts:
            if case.cause != result.cause:
                print(
                    f"wrong: {case.name}: {case.cause}, not {result.cause} ({result.confidence:.2f}: {result.reason})"
                )
        print()


if __name__ == "__main__":
    main()
