"""Claims of many real processes on one list: no task has two owners, no token occurs twice."""

from __future__ import annotations

import json
import os
import random
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from support.project import QuickDisk
from support.wait import LIMIT_S
from yolo_supervisor.actions.tasks import Claim
from yolo_supervisor.models import Task
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Outcome, Store


def a_task(path: Path = Path("/red/3.json"), owner: str | None = "dev-1", status: str = "in_progress") -> Task:
    return Task(list=path.parent.name, number=path.stem, status=status, owner=owner, path=path, subject="Fix bug")


def put(path: Path, status: str = "pending", owner: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"id": path.stem, "status": status, **({"owner": owner} if owner else {})}))
    return path


# -- claims -------------------------------------------------------------------------------------------------------


def race(runners: Sequence[Callable[[int], None]]) -> list[tuple[str, str, int]]:
    """Run all at once, each in a separate process; the claims that they got: task, owner, token."""
    start, go = os.pipe()
    reading, output = os.pipe()
    pids = []
    for run in runners:
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(LIMIT_S))
            os.close(go)
            os.read(start, 1)
            try:
                run(output)
            except BaseException:  # noqa: BLE001 - the child must end here, whatever happens
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    for fd in (start, go, output):
        os.close(fd)
    with open(reading) as pipe:
        claims = [(key, owner, int(token)) for key, owner, token in (line.split() for line in pipe)]
    assert {os.waitpid(pid, 0)[1] for pid in pids} == {0}
    return claims


def opened(store: Store) -> bool:
    try:
        store.open()
    except Busy:
        return False
    return True


def compete(project: Path, owner: str, paths: list[Path], output: int) -> None:
    """Claim each of the tasks, in an order that depends on the owner."""
    store = Store(project, disk=QuickDisk())
    while not opened(store):
        pass
    for path in random.Random(owner).sample(paths, len(paths)):
        task = a_task(path, None, "pending")
        action = Claim(key=task.id, task=task, owner=owner, reason="asked", evidence={"owner": owner})
        while (outcome := store.commit(action, owner)) is Outcome.BUSY:
            pass
        if outcome is Outcome.DONE:
            token = store.index.claims[task.id].token
            os.write(output, f"{task.id} {owner} {token}\n".encode())


@pytest.mark.thorough
@pytest.mark.system
def test_16_competing_processes_claim_each_task_once_with_distinct_tokens(
    project: Path,
) -> None:
    paths = [put(project / "red" / f"{number}.json") for number in range(150)]
    with closing(Store(project)) as store:
        store.open()

    claims = race([lambda output, n=n: compete(project, f"dev-{n}", paths, output) for n in range(16)])  # type: ignore[misc]

    assert sorted(key for key, _, _ in claims) == sorted(f"red/{path.stem}" for path in paths)
    assert len({token for _, _, token in claims}) == len(paths)
    for key, owner, _ in claims:
        found = json.loads((project / f"{key}.json").read_text())
        assert (found["status"], found["owner"]) == ("in_progress", owner)
