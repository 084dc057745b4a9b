"""Retries: claims and their tokens, attempts, pauses, poison tasks, and the rate limit of requeues."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.journal import an_entry
from support.project import FakeClock, QuickDisk, agent_of, given_back, read_task, write_record, write_task
from support.wait import LIMIT_S
from yolo_supervisor.actions import tasks as task_actions
from yolo_supervisor.actions.base import Edit
from yolo_supervisor.actions.tasks import Claim, Complete, MoveToDeadLetters, Requeue, WriteDeadLetter
from yolo_supervisor.clock import Clock, SystemClock
from yolo_supervisor.config import AgentsConfig, Config, TasksConfig
from yolo_supervisor.daemon.executor import RateLimiter
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.formats import tasks
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import ProcessId, Task
from yolo_supervisor.policy.retry import (
    Never,
    NeverCode,
    RetryDecision,
    RetryPolicy,
    letter_file,
    requeue_or_dead_letter,
)
from yolo_supervisor.store.history import history
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.lines import (
    CheckpointLine,
    ClaimState,
    FailureState,
    Heartbeat,
    Line,
    SignOfLife,
    dump,
    load,
)
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux

LETTERS = Path("/letters")
ENOUGH = Never(NeverCode.ATTEMPTS, "enough")


def a_task(path: Path = Path("/red/3.json"), owner: str | None = "dev-1", status: str = "in_progress") -> Task:
    return Task(list=path.parent.name, number=path.stem, status=status, owner=owner, path=path, subject="Fix bug")


class FailingTask:
    """One process of ours at the project, and a task on which agents fail."""

    def __init__(self, project: Path, clock: FakeClock | None = None, boot: str = "here", size: int = 2**26) -> None:
        self.project = project
        self.clock = clock or FakeClock()
        self.boot = boot
        tasks = TasksConfig(max_attempts=100, poison_s=0.0, backoff_s=8.0, backoff_max_s=1000.0)
        self.store = Store(project, self.clock, QuickDisk(), journal_size=size)
        self.store.open()
        self.queue = RetryPolicy(Config(tasks=tasks), self.store, self.clock, boot)
        self.path = project / "red" / "3.json"

    def set(self, **wanted: Any) -> None:
        self.queue.config = Config(tasks=msgspec.structs.replace(self.queue.config.tasks, **wanted))

    def again(self, boot: str | None = None) -> FailingTask:
        """The next run of the supervisor, with the same configuration."""
        self.store.close()
        other = FailingTask(self.project, self.clock, boot or self.boot)
        other.queue.config = self.queue.config
        return other

    def decision(self, cause: str = "died") -> RetryDecision:
        """The decision after a failure of its agent."""
        return self.queue.decide(a_task(self.path), cause)

    def fails(self, cause: str = "died") -> RetryDecision:
        """Apply the decision after a failure of its agent, and return it."""
        put(self.path, "in_progress", "dev-1")
        decision = self.decision(cause)
        for action in requeue_or_dead_letter(
            a_task(self.path), decision, self.store.paths.folder / "dead-letters", "it is dead", {}
        ):
            assert self.store.commit(action, "test") is Outcome.DONE
        return decision

    def commit(self, action: Edit) -> Outcome:
        return self.store.commit(action, "test")

    def claim(self, owner: str, path: Path | None = None) -> int | None:
        """The token that the owner gets for the task; None if it gets none."""
        task = a_task(path or self.path, None, "pending")
        evidence = {"owner": owner, "since_s": self.clock.s, "boot": self.boot}
        if self.commit(Claim(key=task.id, task=task, owner=owner, reason="asked", evidence=evidence)) is Outcome.STALE:
            return None
        token = self.store.index.claims[task.id].token
        assert isinstance(token, int)
        return token

    def done(self, owner: str, token: int) -> bool:
        task = a_task(self.path)
        return self.commit(Complete(key=task.id, task=task, owner=owner, token=token, reason="done")) is Outcome.DONE

    def beat(self, token: int) -> bool:
        return self.store.beat("red/3", token, self.clock.s, self.boot)

    def by_hand(self) -> None:
        task = a_task(self.path)
        why = "a person said so"
        action = Requeue(key=task.id, task=task, owner=task.owner, cause="by hand", by_hand=True, reason=why)
        assert self.commit(action) is Outcome.DONE


def put(path: Path, status: str = "pending", owner: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"id": path.stem, "status": status, **({"owner": owner} if owner else {})}))
    return path


@pytest.fixture
def failing(project: Path) -> Iterator[FailingTask]:
    failing = FailingTask(project)
    put(failing.path)
    yield failing
    failing.store.close()


# -- claims -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "owner"),
    [("in_progress", "dev-1"), ("in_progress", "dev-2"), ("pending", "dev-1"), ("completed", None), ("deleted", None)],
)
def test_only_a_pending_unowned_task_can_be_claimed(failing: FailingTask, status: str, owner: str | None) -> None:
    put(failing.path, status, owner)
    before = failing.path.read_bytes()

    assert failing.claim("dev-2") is None
    assert failing.path.read_bytes() == before

    put(failing.path, "pending", "dev-2")
    assert failing.claim("dev-2") is not None, "it was assigned to that very one"


def test_a_task_that_is_torn_or_gone_cannot_be_claimed(failing: FailingTask) -> None:
    failing.path.write_text('{"id": "3", "stat')
    assert failing.claim("dev-1") is None

    failing.path.unlink()
    assert failing.claim("dev-1") is None
    assert not failing.path.exists()


def test_a_token_is_greater_than_all_before_it_over_restarts_rotations_and_the_loss_of_the_journals_end(
    project: Path,
) -> None:
    tokens = []
    put(project / "red" / "3.json")
    for number in range(60):
        failing = FailingTask(project, size=2**16)
        tokens.append(failing.claim(f"dev-{number}"))
        if number % 3 == 0:
            assert failing.done(f"dev-{number}", tokens[-1] or 0)
            put(failing.path)
        else:
            failing.by_hand()
        failing.store.close()
        if number % 7 == 6:
            journal = failing.store.paths.journal
            lines = journal.read_bytes().splitlines(keepends=True)
            journal.write_bytes(b"".join(lines[:-3]))
            put(failing.path)

    assert tokens == sorted({token for token in tokens if token is not None})
    assert list(FailingTask(project).store.paths.folder.glob("journal-*.jsonl")), "it was rotated"


def test_a_token_of_a_claim_that_the_journal_has_lost_counts_for_nothing(failing: FailingTask) -> None:
    journal = failing.store.paths.journal
    before = journal.read_bytes()
    token = failing.claim("dev-1")
    assert token
    failing.store.close()
    journal.write_bytes(before)
    put(failing.path)
    later = failing.again()

    assert not later.beat(token)
    assert not later.done("dev-1", token)
    assert (later.claim("dev-2") or 0) > token


def test_a_stale_claim_can_neither_send_heartbeats_nor_complete(failing: FailingTask) -> None:
    old = failing.claim("dev-1")
    assert old
    assert failing.beat(old)
    failing.by_hand()
    assert not failing.beat(old), "it was given back"
    new = failing.claim("dev-2")
    assert new

    assert not failing.beat(old)
    assert not failing.done("dev-1", old)
    assert not failing.done("dev-2", old)
    assert not failing.done("dev-1", new)
    assert json.loads(failing.path.read_text())["owner"] == "dev-2"
    assert failing.beat(new)
    assert failing.done("dev-2", new)


def test_a_namesakes_new_claim_fences_off_its_predecessor(failing: FailingTask) -> None:
    old = failing.claim("dev-1")
    failing.by_hand()
    new = failing.claim("dev-1")
    assert old
    assert new

    assert not failing.done("dev-1", old)
    assert failing.done("dev-1", new)


def test_a_predecessors_token_cannot_complete_a_namesakes_claim_by_the_client(
    failing: FailingTask,
) -> None:
    old = failing.claim("dev-1")
    assert old
    failing.by_hand()
    put(failing.path, "in_progress", "dev-1")

    assert not failing.done("dev-1", old)
    assert json.loads(failing.path.read_text())["status"] == "in_progress"


def test_a_late_completion_is_accepted_without_a_newer_claim(failing: FailingTask) -> None:
    token = failing.claim("dev-1")
    assert token
    failing.by_hand()

    assert failing.again().done("dev-1", token)
    assert json.loads(failing.path.read_text()) == {"id": "3", "status": "completed", "owner": "dev-1"}


@pytest.mark.parametrize("token", [0, -1, 2, 10**6, 10**30])
def test_a_token_that_was_never_given_out_is_refused_for_a_heartbeat_and_for_done(
    failing: FailingTask, token: int
) -> None:
    real = failing.claim("dev-1")
    assert real not in (None, token)
    before = failing.path.read_bytes()

    assert not failing.beat(token)
    assert not failing.done("dev-1", token)
    assert failing.path.read_bytes() == before


def test_a_token_counts_once(failing: FailingTask) -> None:
    token = failing.claim("dev-1")
    assert token
    assert failing.done("dev-1", token)

    assert not failing.done("dev-1", token)
    assert not failing.beat(token)


def test_a_heartbeat_is_remembered_over_a_restart_and_a_rotation(failing: FailingTask) -> None:
    token = failing.claim("dev-1")
    assert token
    failing.clock.wait(60)
    assert failing.beat(token)
    failing.store.journal.rotate()

    claim = failing.again().store.index.claims["red/3"]

    assert claim == ClaimState(token=token, owner="dev-1", live=True, since_s=5060.0, boot="here")


def test_a_dead_letter_accepts_no_heartbeat_before_or_after_redrive(failing: FailingTask) -> None:
    failing.set(max_attempts=1)
    token = failing.claim("dev-1")
    assert token
    assert failing.fails().never
    assert not failing.beat(token)

    task = a_task(failing.path)
    assert failing.commit(task_actions.redrive(task, "a person said so")) is Outcome.DONE
    assert not failing.beat(token)


# -- attempts and pauses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_a_task_is_requeued_until_its_last_attempt_fails(failing: FailingTask, most: int) -> None:
    failing.set(max_attempts=most, backoff_s=0.0)

    turns = [failing.fails() for _ in range(most)]

    assert [decision.attempt for decision in turns] == list(range(1, most + 1))
    assert [bool(decision.never) for decision in turns] == [False] * (most - 1) + [True]
    assert turns[-1].never == Never(NeverCode.ATTEMPTS, f"attempt {most} of {most} has failed")
    assert json.loads(failing.path.read_text()) == {"id": "3", "status": "pending", "owner": tasks.SET_ASIDE}


def test_a_finished_task_has_all_its_attempts_again_and_so_has_one_that_was_redriven(failing: FailingTask) -> None:
    failing.set(max_attempts=2, backoff_s=0.0)
    failing.fails()
    token = failing.claim("dev-2")
    assert token
    assert failing.decision().attempt == 2
    assert failing.done("dev-2", token)
    assert failing.decision().attempt == 1

    failing.fails()
    assert failing.fails().never
    task = a_task(failing.path)
    assert failing.commit(task_actions.redrive(task, "a person said so")) is Outcome.DONE

    assert failing.decision() == RetryDecision(
        cause=failing.decision().cause, attempt=1, stamp=failing.decision().stamp
    )


def test_the_first_requeue_is_immediate_and_later_ones_are_delayed(failing: FailingTask) -> None:
    assert failing.fails().wait_s == 0.0
    pauses = []
    for _ in range(6):
        pauses.append(failing.fails().wait_s)
        assert json.loads(failing.path.read_text())["status"] == "in_progress", "too early"
        failing.clock.wait(pauses[-1] - 0.001)
        assert 0 < failing.fails().wait_s < 0.0011
        assert json.loads(failing.path.read_text())["status"] == "in_progress", "just before"
        failing.clock.wait(0.001 + 1e-6)
        assert failing.fails().wait_s == 0.0
        assert json.loads(failing.path.read_text())["status"] == "pending", "just at it"

    assert pauses == sorted(set(pauses)), "each is longer than the one before"
    assert all(whole / 2 <= pause <= whole for pause, whole in zip(pauses, (8, 16, 32, 64, 128, 256), strict=True))


def test_pauses_differ_from_task_to_task_and_are_never_longer_than_the_longest(failing: FailingTask) -> None:
    failing.set(backoff_max_s=20.0)
    index = failing.store.index
    found = []
    for number in range(50):
        task = a_task(Path(f"/red/{number}.json"))
        index.requeues[task.id] = 9
        index.failures[task.id] = FailureState(cause="died", since_s=failing.clock.s, boot="here")
        found.append(failing.queue.decide(task, "died").wait_s)

    assert len(set(found)) > 40
    assert 10.0 <= min(found) < 12.0
    assert 18.0 < max(found) <= 20.0


@pytest.mark.parametrize("attempts", [1022, 1023, 1030, 10**6])
def test_a_task_requeued_often_by_a_person_is_delayed(failing: FailingTask, attempts: int) -> None:
    failing.store.index.requeues["red/3"] = attempts

    assert failing.decision().never


def test_a_pause_and_the_attempts_outlast_a_restart_and_a_rotation(failing: FailingTask) -> None:
    failing.fails()
    before = failing.decision()
    failing.store.journal.rotate()
    failing.clock.wait(1.0)

    after = failing.again().decision()

    assert after.attempt == before.attempt == 2
    assert after.wait_s == pytest.approx(before.wait_s - 1.0)


def test_a_reboot_ends_a_pause_and_the_memory_of_poison_but_the_attempts_are_still_counted(
    failing: FailingTask,
) -> None:
    failing.set(poison_s=60.0)
    failing.fails()
    assert failing.decision().never

    after = failing.again(boot="another").decision()

    assert (after.attempt, after.wait_s, after.never) == (2, 0.0, None)


@pytest.mark.parametrize("days", [1, -1])
def test_a_wall_clock_that_is_set_changes_nothing_about_pauses_and_poison(failing: FailingTask, days: int) -> None:
    failing.fails()
    before = failing.decision()
    failing.set(poison_s=60.0)
    poisoned = failing.decision()

    failing.clock.jump(timedelta(days=days))

    assert failing.decision() == poisoned
    failing.set(poison_s=0.0)
    assert failing.decision() == before
    assert failing.again().decision() == before


@pytest.mark.parametrize(
    ("poison_s", "after_s", "cause", "poison"),
    [
        (60.0, 0.0, "died", True),
        (60.0, 59.999, "died", True),
        (60.0, 60.0, "died", False),
        (60.0, 0.0, "silent", False),
        (0.0, 0.0, "died", False),
    ],
)
def test_the_same_cause_twice_in_a_short_time_is_poison(
    failing: FailingTask, poison_s: float, after_s: float, cause: str, poison: bool
) -> None:
    failing.set(poison_s=poison_s, backoff_s=0.0)
    failing.fails("died")
    failing.clock.wait(after_s)

    decision = failing.fails(cause)

    assert (decision.never is not None) is poison
    assert (json.loads(failing.path.read_text()).get("owner") == tasks.SET_ASIDE) is poison


def test_a_requeue_by_a_person_counts_no_attempt_and_has_no_delay(failing: FailingTask) -> None:
    failing.set(poison_s=60.0)
    put(failing.path, "in_progress", "dev-1")
    failing.by_hand()

    decision = failing.decision("by hand")

    assert (decision.never, decision.wait_s) == (None, 0.0)


def test_one_tasks_failures_are_not_anothers(failing: FailingTask) -> None:
    failing.fails()

    assert failing.queue.decide(a_task(Path("/blue/3.json")), "died").attempt == 1


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "../../x", "x" * 4000, "Grüße"])
def test_a_task_with_any_name_is_retried_and_dead_lettered(failing: FailingTask, name: str) -> None:
    failing.set(max_attempts=3)
    plan = Task(
        list=execution_state.EXECUTION_STATE, number=name, status="running", owner="dev-1", path=Path("/state.json")
    )
    index = failing.store.index
    index.requeues[plan.id] = 1
    index.failures[plan.id] = FailureState(cause="died", since_s=failing.clock.s, boot="here")
    assert failing.queue.decide(plan, "died").wait_s > 0
    index.requeues[plan.id] = 2
    letters = failing.store.paths.folder / "dead-letters"

    letter, _ = requeue_or_dead_letter(plan, failing.queue.decide(plan, "died"), letters, "it is dead", {})

    assert isinstance(letter, WriteDeadLetter)
    assert letter.path.parent == letters
    assert failing.commit(letter) is Outcome.DONE
    assert json.loads(letter.path.read_bytes())["number"] == name


words = st.text(st.sampled_from("ab_-/%. é\0\ud800"), min_size=1, max_size=8)


@given(words, words)
@example("a__b/1", "a/b__1")
@example("a/b", "a__b")
def test_dead_letter_names_are_unique(one: str, other: str) -> None:
    assert (letter_file(one) == letter_file(other)) is (one == other)
    assert "/" not in letter_file(one)


# -- the actions of a decision ----------------------------------------------------------------------------------------


def test_while_it_is_too_early_no_action_follows() -> None:
    assert requeue_or_dead_letter(a_task(), RetryDecision(wait_s=0.001), LETTERS, "it is dead", {}) == ()


def test_tasks_plans_and_dead_letters_are_requeued_each_in_its_format() -> None:
    stamp = {"cause": "died", "attempt": 2, "since_s": 1.0, "boot": "here"}
    decision, stamped = RetryDecision(cause="died", attempt=2, stamp=stamp), {"agent": "dev-1@red", **stamp}
    evidence = {"agent": "dev-1@red"}
    task = a_task()
    plan = Task(
        list=execution_state.EXECUTION_STATE, number="05-01", status="running", owner=None, path=Path("/state.json")
    )

    (requeued,) = requeue_or_dead_letter(task, decision, LETTERS, "it is dead", evidence)
    (plan_requeued,) = requeue_or_dead_letter(plan, decision, LETTERS, "it is dead", evidence)
    letter, aside = requeue_or_dead_letter(task, replace(decision, never=ENOUGH), LETTERS, "it is dead", evidence)

    assert isinstance(requeued, Requeue)
    assert requeued.owner == "dev-1"
    assert isinstance(plan_requeued, Requeue)
    assert plan_requeued.task == plan
    assert isinstance(letter, WriteDeadLetter), "the story is written before the task is set aside"
    assert aside == MoveToDeadLetters(key="red/3", task=task, owner="dev-1", cause="died", reason="enough: it is dead",
                             evidence={"owner": "dev-1", **stamped})  # fmt: skip
    for action, owner in ((requeued, "dev-1"), (plan_requeued, None), (aside, "dev-1")):
        assert action.evidence == {"owner": owner, **stamped}
    story = json.loads(letter.data)
    assert (story["id"], story["subject"], story["last_owner"]) == ("red/3", "Fix bug", "dev-1")
    assert story["why"] == "enough: it is dead"


def test_a_task_completed_between_observation_and_action_stays_completed(failing: FailingTask) -> None:
    for most in (1, 100):
        failing.set(max_attempts=most)
        steps = requeue_or_dead_letter(
            a_task(failing.path), failing.decision(), failing.store.paths.folder / "dead-letters", "it is dead", {}
        )
        put(failing.path, "completed", "dev-1")

        assert failing.commit(steps[-1]) is Outcome.STALE
        assert json.loads(failing.path.read_text())["status"] == "completed"
    assert failing.decision().attempt == 1


# -- tasks in the index ------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["claimed", "requeued", "dead_lettered", "redriven", "dropped", "completed", "beat"]),
            st.sampled_from(["red/1", "red/2"]),
            st.integers(1, 9),
        ),
        max_size=30,
    ),
    st.integers(0, 30),
)
def test_a_checkpoint_gives_the_same_index_as_a_full_replay(turns: list[tuple[str, str, int]], at: int) -> None:
    def record(seq: int, action: str, key: str, number: int) -> Line:
        if action == "beat":
            return Heartbeat(seq=seq, beat=SignOfLife(key, number, float(seq), "here"))
        evidence = {"owner": f"dev-{number}", "cause": "died", "since_s": float(seq), "boot": "here"}
        return an_entry(action, key, evidence=evidence, seq=seq)

    records = [record(seq, *decision) for seq, decision in enumerate(turns, 1)]
    whole, early, late = Index(), Index(), Index()
    for each in records:
        whole.apply(each)
    for each in records[:at]:
        early.apply(each)
    line = load(dump(CheckpointLine(seq=early.seq or 1, checkpoint=early.checkpoint()))[:-1])
    assert line is not None
    late.apply(line)
    late.seq = early.seq
    for each in records[at:]:
        late.apply(each)

    assert late.checkpoint() == whole.checkpoint()


# -- the rate limit -----------------------------------------------------------------------------------------------


@given(st.floats(0.05, 1000), st.lists(st.floats(0, 3), max_size=200))
def test_requeues_are_rate_limited(per_s: float, pauses: list[float]) -> None:
    clock = FakeClock()
    limiter, taken = RateLimiter(clock), list[float]()
    for pause_s in pauses:
        clock.wait(pause_s)
        taken += [clock.s for _ in range(3) if limiter.take(per_s)]

    span_s = max(1.0, 1 / per_s)
    for first in taken:
        assert sum(first <= each < first + span_s * 0.999 for each in taken) <= max(1.0, per_s)


@pytest.mark.parametrize("per_s", [0.5, 1.0, 25.0, 1000.0])
def test_the_rate_limiter_refills(per_s: float) -> None:
    clock = FakeClock()
    limiter = RateLimiter(clock)
    for _ in range(3):
        assert limiter.take(per_s)
        while limiter.take(per_s):
            pass
        clock.wait(max(1.0, 1 / per_s) * 1.001)


class InProcessDaemon:
    """The runner over a project, in this process; its agents are dead, and known from an earlier run."""

    def __init__(self, project: Path, claude: Path, clock: Clock, config: Config) -> None:
        self.processes = Processes(backend())
        services = HostServices(clock, self.processes, ProcessScanner(self.processes), Tmux(clock))
        self.project, self.claude = project, claude
        self.runner = Runner(project, config, services, {"HOME": str(claude.parent)})

    def dead_agent(self, name: str) -> None:
        """Register an agent that lived before the last reboot."""
        machine, _, namespace = self.processes.boot.split("/")
        process = ProcessId(4242, 1, f"{machine}/an earlier boot/{namespace}")
        write_record(self.project, agent_of(name, "red", process, claude_dir=self.claude))
        self.runner.wakeups["agents"].ring()

    def did(self, action: str) -> list[dict[str, Any]]:
        return [each for each in history(self.runner.store.paths.journal) if each["action"] == action]

    async def until(self, seen: Callable[[], object], what: str) -> None:
        with anyio.move_on_after(LIMIT_S):
            while not seen():
                await anyio.sleep(0.01)
            return
        raise AssertionError(f"waited in vain: {what}")

    async def looks(self, number: int = 3) -> None:
        """Wait for so many further looks at the agents."""
        health_of_watcher = self.runner.watcher_health["agents"]
        for _ in range(number):
            before = health_of_watcher.last_tick_at
            self.runner.wakeups["agents"].ring()
            health_of_watcher.last_tick_at = None
            await self.until(lambda: health_of_watcher.last_tick_at is not None, f"a look after {before}")

    def run(self, steps: Callable[[], Awaitable[None]]) -> None:
        async def life() -> None:
            self.runner.open()
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.runner.run)
                    await steps()
                    tasks.cancel_scope.cancel()
            finally:
                self.runner.close()

        anyio.run(life)


@pytest.mark.thorough
def test_when_all_agents_die_at_once_their_tasks_go_back_no_faster_than_is_allowed_and_none_is_lost(
    project: Path, claude_home: Path
) -> None:
    clock = FakeClock()
    config = Config(tasks=TasksConfig(requeues_per_s=40.0))
    daemon = InProcessDaemon(project, claude_home, clock, config)
    files = [write_task(claude_home, "red", number, f"dev-{number}", "in_progress") for number in range(100)]
    for number in range(100):
        daemon.dead_agent(f"dev-{number}")

    async def steps() -> None:
        for most in (40, 80, 100):
            await daemon.until(lambda most=most: sum(map(given_back, files)) >= most, f"{most} tasks")  # type: ignore[misc]
            await daemon.looks()
            assert sum(map(given_back, files)) == most
            assert len(daemon.did("requeued")) == most
            clock.wait(1.001)
        await daemon.until(lambda: len(daemon.did("forgotten")) == 100, "all to be healed")

    daemon.run(steps)
    assert sorted(each["key"] for each in daemon.did("requeued")) == sorted(f"red/{path.stem}" for path in files)


def test_a_record_stands_until_it_is_not_too_early_any_more_and_then_the_task_goes_back_by_itself(
    project: Path, claude_home: Path
) -> None:
    config = Config(
        agents=AgentsConfig(interval_s=86400.0),
        tasks=TasksConfig(backoff_s=0.6, poison_s=0.0, interval_s=86400.0),
    )
    daemon = InProcessDaemon(project, claude_home, SystemClock(), config)
    path = write_task(claude_home, "red", 1, "dev-1", "in_progress")
    daemon.dead_agent("dev-1")

    async def steps() -> None:
        await daemon.until(lambda: len(daemon.did("forgotten")) == 1, "the first to be healed")
        write_task(claude_home, "red", 1, "dev-2", "in_progress")
        daemon.dead_agent("dev-2")
        await daemon.until(lambda: len(daemon.did("forgotten")) == 2, "the second to be healed, with no other reason")

    daemon.run(steps)
    assert given_back(path)
    first, second = daemon.did("requeued")
    assert second["evidence"]["since_s"] - first["evidence"]["since_s"] >= 0.3
    assert daemon.did("died")[1]["seq"] < second["seq"] < daemon.did("forgotten")[1]["seq"]


def test_observe_mode_reports_and_counts_nothing(project: Path, claude_home: Path) -> None:
    daemon = InProcessDaemon(
        project, claude_home, FakeClock(), Config(mode="observe", tasks=TasksConfig(max_attempts=1))
    )
    path = write_task(claude_home, "red", 1, "dev-1", "in_progress")
    before = path.read_bytes()
    daemon.dead_agent("dev-1")

    async def steps() -> None:
        await daemon.until(lambda: daemon.did("would_dead_lettered"), "it to be journaled")
        await daemon.looks()

    daemon.run(steps)
    assert path.read_bytes() == before
    assert not list((daemon.runner.store.paths.folder / "dead-letters").iterdir())
    assert len(daemon.did("would_dead_lettered")) == 1
    index = daemon.runner.store.index
    assert not index.dead_letters
    assert not index.requeues


def test_a_plan_set_aside_is_not_requeued(project: Path, claude_home: Path) -> None:
    daemon = InProcessDaemon(project, claude_home, FakeClock(), Config(tasks=TasksConfig(max_attempts=1)))
    state = project / ".yolo-planning" / ".execution-state.json"
    state.write_text('{"phase":5,"plans":[{"id":"05-01","status":"running"},{"id":"05-02","status":"pending"}]}')
    daemon.dead_agent("dev-01")

    async def steps() -> None:
        await daemon.until(lambda: daemon.did("forgotten"), "it to be healed")

    daemon.run(steps)
    first, second = json.loads(state.read_text())["plans"]
    assert first == {"id": "05-01", "status": "failed", "owner": tasks.SET_ASIDE}
    assert second == {"id": "05-02", "status": "pending"}
    assert [each["key"] for each in daemon.did("dead_lettered")] == ["execution-state/05-01"]


def test_failures_of_a_completed_task_do_not_count_for_a_namesake(project: Path, claude_home: Path) -> None:
    daemon = InProcessDaemon(project, claude_home, FakeClock(), Config(tasks=TasksConfig(max_attempts=2, poison_s=0.0)))
    state = project / ".yolo-planning" / ".execution-state.json"
    running = '{"phase":5,"plans":[{"id":"05-01","status":"running"}]}'
    state.write_text(running)
    daemon.dead_agent("dev-01")

    async def steps() -> None:
        await daemon.until(lambda: daemon.did("forgotten"), "it to be healed")
        state.write_text(running.replace("running", "complete"))
        daemon.runner.wakeups["tasks"].ring()
        await daemon.until(lambda: daemon.did("completed"), "it to be seen that it is finished")
        state.write_text(running)  # the next milestone has a plan of that name, too
        daemon.dead_agent("dev-01")
        await daemon.until(lambda: len(daemon.did("forgotten")) == 2, "it to be healed again")

    daemon.run(steps)
    assert len(daemon.did("requeued")) == 2
    assert not daemon.did("dead_lettered")


def test_a_crash_before_the_task_is_set_aside_is_recovered_by_the_next_run(project: Path, claude_home: Path) -> None:
    config = Config(tasks=TasksConfig(max_attempts=1))
    path = write_task(claude_home, "red", 1, "dev-1", "in_progress")
    with closing(Store(project)) as before:
        before.open()
        letters = before.paths.folder / "dead-letters"
        letter, _ = requeue_or_dead_letter(a_task(path), RetryDecision(never=ENOUGH), letters, "it is dead", {})
        assert isinstance(letter, WriteDeadLetter)
        assert before.commit(letter, "agents") is Outcome.DONE
    daemon = InProcessDaemon(project, claude_home, FakeClock(), config)
    daemon.dead_agent("dev-1")

    async def steps() -> None:
        await daemon.until(lambda: daemon.did("forgotten"), "it to be healed")

    daemon.run(steps)
    assert read_task(path)["owner"] == tasks.SET_ASIDE
    assert daemon.runner.store.index.dead_letters.keys() == {"red/1"}
    assert len(list((daemon.runner.store.paths.folder / "dead-letters").iterdir())) == 1
