"""Leases: their holders, fencing tokens and ends, with clocks that jump and processes that compete."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.disks import use_disk
from support.project import EPOCH, FakeClock, QuickDisk
from yolo_supervisor.actions.base import WriteFile
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.config import Config
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.read import digest
from yolo_supervisor.inventory.leases import Held, Leases, over
from yolo_supervisor.inventory.stale_locks import StaleLocks
from yolo_supervisor.models import Agent, Liveness
from yolo_supervisor.store.atomic import create
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import history
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.watchers.leases import LeasesWatcher, decide

DAY = timedelta(days=1)
FILE = "src/a1.js"


class BusyClock(FakeClock):
    """A clock that lets another program be quicker."""

    meanwhile: Callable[[], object] | None = None
    """The other program's change, made once, when the time is asked for."""

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        if self.meanwhile is not None:
            step, self.meanwhile = self.meanwhile, None
            step()
        return super().monotonic()


def as_plugin(owner: str, at: datetime = EPOCH, ttl: object = 60, resource: str = FILE) -> bytes:
    """A lease as ``yolo lease-lock acquire`` writes it."""
    said = {"acquired_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "owner": owner, "resource": resource, "ttl_secs": ttl}
    return json.dumps({**said, "type": "lease"}, indent=2, sort_keys=True, ensure_ascii=False).encode()


class Process:
    """One process of ours at the project: a store, and its own view of the leases."""

    def __init__(self, project: Path, clock: BusyClock, boot: str = "here") -> None:
        self.store = Store(project, clock, QuickDisk())
        self.store.open()
        self.clock = clock
        self.leases = Leases(self.store, clock, boot)
        self.living: list[Agent] = []
        locks = StaleLocks(
            self.store,
            Processes(backend()),
            lambda: [(each, Liveness.ALIVE) for each in self.living],
            project / "pid-lock",
        )
        self.watcher = LeasesWatcher(Config(), self.leases, locks)

    def _agents(self) -> list[tuple[Agent, Liveness]]:
        return [(each, Liveness.ALIVE) for each in self.living]

    def ask(self, owner: str, resource: str = FILE, ttl_s: int = 60) -> int | str:
        """The token that the owner gets; else the holder of the lease."""
        action = self.leases.lend(resource, owner, ttl_s, self.clock.now())
        if isinstance(action, Held):
            return action.lease.owner
        if (outcome := self.store.commit(action, "test")) is not Outcome.DONE:
            return str(outcome)
        token: int = self.store.index.leases[str(action.path)].token
        return token

    def release(self, owner: str, resource: str = FILE) -> Outcome:
        path = self.store.paths.planning / ".locks" / plugin_leases.lease_file(resource)
        return self.store.commit(Release(key=resource, path=path, owner=owner, reason="given back"), "test")

    def left_s(self, resource: str = FILE) -> float | None:
        held = self.leases.of(resource, self.clock.now())
        return held.left_s if held else None

    async def tick(self) -> list[str]:
        """The owners of the leases that the watcher ends now."""
        ended = []
        for (action,) in await self.watcher.tick(self.clock.now()):
            assert isinstance(action, Release)
            assert self.store.commit(action, "leases") is Outcome.DONE
            ended.append(action.owner)
        return ended


class World:
    def __init__(self, project: Path) -> None:
        self.project = project
        self.clock = BusyClock()
        self.locks = project / ".yolo-planning" / ".locks"
        self.locks.mkdir()
        self.file = self.locks / "src__a1.js.lease"
        self._started: list[Process] = []
        self.us = self.start()

    def start(self, boot: str = "here") -> Process:
        self._started.append(Process(self.project, self.clock, boot))
        return self._started[-1]

    def plugin(self, owner: str, age_s: float = 0, ttl: object = 60) -> None:
        self.file.write_bytes(as_plugin(owner, self.clock.wall - timedelta(seconds=age_s), ttl))

    def end(self) -> None:
        for each in self._started:
            each.store.close()


@pytest.fixture
def world(project: Path) -> Iterator[World]:
    started = World(project)
    yield started
    started.end()


def token(answer: int | str) -> int:
    assert isinstance(answer, int), f"it was not given: {answer}"
    return answer


# -- the holder ----------------------------------------------------------------------------------------------------


def test_a_free_lease_is_given_and_a_held_one_is_not(world: World) -> None:
    token(world.us.ask("dev-1"))

    assert world.us.ask("dev-2") == "dev-1"


def test_a_lease_is_written_byte_for_byte_as_the_plugin_writes_it(world: World) -> None:
    world.us.ask("dev-01")

    assert world.file.read_text() == (
        "{\n"
        '  "acquired_at": "2026-11-22T20:55:10Z",\n'
        '  "owner": "dev-01",\n'
        '  "resource": "src/a1.js",\n'
        '  "ttl_secs": 60,\n'
        '  "type": "lease"\n'
        "}"
    )


def test_words_of_any_language_are_written_as_the_plugin_writes_them(world: World) -> None:
    world.us.ask("Größe 😀", "src/日本.py")

    assert (world.locks / "src__日本.py.lease").read_bytes() == as_plugin("Größe 😀", resource="src/日本.py")


def test_a_lease_of_the_plugin_is_a_lease_here(world: World) -> None:
    world.plugin("dev-1")

    assert world.us.ask("dev-2") == "dev-1"
    assert world.us.release("dev-2") is Outcome.STALE
    assert world.file.read_bytes() == as_plugin("dev-1")


def test_a_renewal_keeps_the_token_and_extends_the_time(world: World) -> None:
    first = world.us.ask("dev-1", ttl_s=60)
    world.clock.wait(59)

    assert world.us.ask("dev-1", ttl_s=90) == first
    assert world.us.left_s() == 90
    assert [e["action"] for e in history(world.us.store.paths.journal)] == ["acquired", "renewed"]


def test_a_lease_is_taken_over_at_its_end_and_not_before(world: World) -> None:
    first = token(world.us.ask("dev-1", ttl_s=60))

    world.clock.wait(59.9)
    assert world.us.ask("dev-2") == "dev-1"
    world.clock.wait(0.1)

    assert token(world.us.ask("dev-2")) > first
    assert history(world.us.store.paths.journal)[-1]["action"] == "taken_over"
    assert world.us.ask("dev-1") == "dev-2"


def test_a_late_renewal_of_an_unclaimed_lease_keeps_the_token(world: World) -> None:
    first = world.us.ask("dev-1", ttl_s=60)
    world.clock.wait(600)

    assert world.us.ask("dev-1") == first
    assert world.us.left_s() == 60


def test_only_the_owner_can_release(world: World) -> None:
    world.us.ask("dev-1")

    assert world.us.release("dev-2") is Outcome.STALE
    assert world.us.ask("dev-2") == "dev-1"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 50, b'{"acquired_at": "2026-', b"[]", b"null", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 50_000],
    ids=["empty", "zeros", "torn", "list", "null", "binary", "surrogate", "deep"],
)
def test_a_broken_lease_is_free_and_its_content_is_in_the_journal(content: bytes, world: World) -> None:
    world.file.write_bytes(content)
    os.utime(world.file, (0, 0))  # so old that no program is writing it

    token(world.us.ask("dev-1"))

    assert world.us.ask("dev-2") == "dev-1"
    lines = [json.loads(line) for line in world.us.store.paths.journal.read_text().splitlines()]
    assert next(line["write"]["before"] for line in lines if "write" in line) == digest(content)


def test_a_lease_whose_file_cannot_be_read_is_not_given(world: World) -> None:
    world.file.mkdir()

    with pytest.raises(OSError, match="not an ordinary file"):
        world.us.ask("dev-1")


def test_leases_are_given_under_any_flags_of_the_plugin(world: World) -> None:
    flags = {"v3_lock_lite": False, "v3_lease_locks": False}
    (world.project / ".yolo-planning" / "config.json").write_text(json.dumps(flags))

    token(world.us.ask("dev-1"))


# -- changes by other programs in the meantime ---------------------------------------------------------------------


def test_a_lease_that_is_renewed_while_another_looks_at_it_is_not_taken_over(world: World) -> None:
    world.us.ask("dev-1", ttl_s=60)
    world.clock.wait(61)
    late = world.start()
    world.clock.meanwhile = lambda: world.plugin("dev-1")

    answer = late.ask("dev-2")

    assert answer in ("dev-1", "stale")
    assert world.file.read_bytes() == as_plugin("dev-1", world.clock.wall)


def test_a_lease_that_the_plugin_gives_away_at_the_last_moment_is_not_ours(world: World) -> None:
    class LateDisk(QuickDisk):
        def link(self, old: Path, new: Path) -> None:
            if new == world.file:
                world.plugin("dev-2")
            super().link(old, new)

    use_disk(world.us.store, LateDisk())

    assert world.us.ask("dev-1") == "stale"
    assert world.file.read_bytes() == as_plugin("dev-2")
    assert history(world.us.store.paths.journal) == []
    assert world.us.ask("dev-1") == "dev-2"
    assert [path.name for path in world.locks.iterdir()] == [world.file.name]


def test_two_simultaneous_decisions_give_the_lease_once(world: World) -> None:
    first, second = (world.us.leases.lend(FILE, owner, 60, EPOCH) for owner in ("dev-1", "dev-2"))
    assert isinstance(first, WriteFile)
    assert isinstance(second, WriteFile)

    assert world.us.store.commit(first, "test") is Outcome.DONE
    assert world.start().store.commit(second, "test") is Outcome.STALE


def test_a_lease_that_was_renewed_since_the_look_is_not_ended(world: World) -> None:
    world.us.ask("dev-1", ttl_s=60)
    world.clock.wait(60)
    held = world.us.leases.of(FILE, world.clock.now())
    assert held is not None
    world.start().ask("dev-1")

    assert world.us.store.commit(over(held), "leases") is Outcome.STALE
    assert world.us.ask("dev-2") == "dev-1"


# -- tokens only grow ------------------------------------------------------------------------------------------------


def test_tokens_grow_over_release(world: World) -> None:
    first = token(world.us.ask("dev-1"))
    world.us.release("dev-1")

    assert token(world.us.ask("dev-1")) > first


def test_tokens_grow_over_restarts_and_stay_with_their_holder(world: World) -> None:
    first = token(world.us.ask("dev-1"))

    assert world.start().ask("dev-1") == first
    world.us.release("dev-1")
    assert token(world.start().ask("dev-2")) > first


def test_tokens_grow_over_the_rotation_of_the_journal_and_stay_with_their_holder(world: World) -> None:
    first = token(world.us.ask("dev-1"))
    for _ in range(9):  # the segment with its line is gone by then
        world.us.store.journal.rotate()

    assert world.us.ask("dev-1") == first
    assert world.start().ask("dev-1") == first
    world.us.release("dev-1")
    assert token(world.us.ask("dev-2")) > first


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_tokens_grow_over_a_journal_that_has_lost_its_end(kept: int, world: World) -> None:
    tokens = []
    for _ in range(3):
        tokens.append(token(world.us.ask("dev-1")))
        world.us.release("dev-1")
    journal = world.us.store.paths.journal
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:kept]))

    assert token(world.start().ask("dev-2")) > max(tokens)


def test_tokens_grow_where_the_line_of_the_holder_is_lost(world: World) -> None:
    first = token(world.us.ask("dev-1"))
    world.us.store.paths.journal.write_bytes(b"")

    assert token(world.start().ask("dev-1")) > first


def test_an_owner_granted_by_the_plugin_does_not_get_the_previous_token(world: World) -> None:
    first = token(world.us.ask("dev-1", ttl_s=60))
    world.clock.wait(61)
    world.plugin("dev-2")

    assert token(world.us.ask("dev-2")) > first


OWNERS = st.sampled_from(["dev-1", "dev-2", "dev-3"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), OWNERS),
        st.tuples(st.just("ask"), OWNERS),
        st.tuples(st.just("release"), OWNERS),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 59.0, 61.0])),
        st.tuples(st.just("jump"), st.sampled_from([-DAY, DAY])),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("rotate"), st.none()),
    ),
    min_size=3,
    max_size=30,
)


def test_a_renewal_within_a_second_holds_for_its_whole_time(world: World) -> None:
    """The file keeps its content at such a renewal."""
    first = world.us.ask("dev-1", ttl_s=60)
    world.clock.wait(0.5)
    assert world.us.ask("dev-1", ttl_s=60) == first
    world.clock.wait(59.75)

    assert world.us.ask("dev-2") == "dev-1"
    world.clock.wait(0.25)
    assert token(world.us.ask("dev-2")) > token(first)


@pytest.mark.anyio
async def test_a_renewal_by_another_process_within_a_second_is_not_ended_early(world: World) -> None:
    world.us.ask("dev-1", ttl_s=60)
    assert await world.us.tick() == []
    world.clock.wait(0.5)
    world.start().ask("dev-1", ttl_s=60)
    world.clock.wait(59.75)

    assert await world.us.tick() == []
    assert 0.0 < world.us.watcher.rest_s() <= 0.25
    world.clock.wait(0.25)
    assert await world.us.tick() == ["dev-1"]


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
@example(steps=[("ask", "dev-1"), ("wait", 0.5), ("ask", "dev-1"), ("wait", 59.0), ("wait", 0.5), ("ask", "dev-2")])
def test_a_lease_has_one_holder_and_its_tokens_increase(
    steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = tmp_path_factory.mktemp("project")
    (project / ".yolo-planning" / ".locks").mkdir(parents=True)
    clock = BusyClock()
    us = Process(project, clock)
    holder, until_s, newest = "", 0.0, 0
    for step, what in steps:
        match step:
            case "wait":
                clock.wait(what)
            case "jump":
                clock.jump(what)
            case "restart":
                us.store.close()
                us = Process(project, clock)
            case "rotate":
                us.store.journal.rotate()
            case "release":
                assert us.release(what) is (Outcome.DONE if what == holder else Outcome.STALE)
                holder = "" if what == holder else holder
            case "ask":
                answer = us.ask(what)
                if holder not in ("", what) and clock.s < until_s:
                    assert answer == holder
                elif what == holder:
                    assert answer == newest
                    until_s = clock.s + 60
                else:
                    assert token(answer) > newest
                    holder, until_s, newest = what, clock.s + 60, token(answer)
    us.store.close()


# -- when it ends ----------------------------------------------------------------------------------------------------


def held_for(left_s: float) -> Held:
    lease = plugin_leases.lease(as_plugin("dev-1"), Path("src__a1.js.lease"))
    assert lease is not None
    return Held(lease=lease, expected_digest="its digest", left_s=left_s)


def test_a_lease_is_ended_at_its_deadline_and_not_before() -> None:
    assert decide([held_for(0.001)], []) == []
    assert decide([held_for(0.0)], []) == [
        (
            Release(
                key=FILE, path=Path("src__a1.js.lease"), owner="dev-1", expected_digest="its digest",
                reason="dev-1 let it run out: it held until 2026-11-22T20:56:10.000000Z",
                evidence={"owner": "dev-1", "ttl_s": 60.0},
            ),
        )
    ]  # fmt: skip


@pytest.mark.anyio
async def test_the_watcher_rests_until_the_first_deadline_and_then_ends_that_lease(world: World) -> None:
    world.us.ask("dev-1", "a", ttl_s=2)
    world.us.ask("dev-2", "b", ttl_s=1)

    assert await world.us.tick() == []
    assert world.us.watcher.rest_s() <= 1.0
    world.clock.wait(1.0)

    assert await world.us.tick() == ["dev-2"]
    assert world.us.watcher.rest_s() <= 1.0
    world.clock.wait(0.999)
    assert await world.us.tick() == []
    world.clock.wait(0.001)
    assert await world.us.tick() == ["dev-1"]


@pytest.mark.anyio
async def test_the_time_that_a_look_and_its_changes_take_does_not_put_off_the_next_deadline(world: World) -> None:
    world.us.ask("dev-1", ttl_s=2)
    await world.us.tick()

    world.clock.wait(1.5)  # the duration of the changes

    assert world.us.watcher.rest_s() <= 0.5


@pytest.mark.anyio
async def test_a_lease_that_another_process_of_ours_gave_ends_at_its_deadline_by_the_monotonic_clock(
    world: World,
) -> None:
    world.clock.wait(0.1)  # the file says it is a tenth of a second older
    world.start().ask("dev-1", ttl_s=60)
    world.clock.wait(0.3)

    assert await world.us.tick() == []
    assert world.us.left_s() == pytest.approx(59.7)


@pytest.mark.anyio
async def test_a_clock_that_jumps_before_a_lease_of_another_process_is_seen_does_not_end_it(world: World) -> None:
    world.start().ask("dev-1", ttl_s=60)
    world.clock.jump(DAY)

    assert await world.us.tick() == []


@pytest.mark.anyio
@pytest.mark.parametrize("by", [DAY, -DAY], ids=["forward", "back"])
@pytest.mark.parametrize("giver", ["us", "plugin"])
async def test_a_clock_that_jumps_a_day_ends_nothing_gives_nothing_away_and_puts_nothing_off(
    giver: str, by: timedelta, world: World
) -> None:
    if giver == "us":
        world.us.ask("dev-1", ttl_s=60)
    else:
        world.plugin("dev-1")
    assert await world.us.tick() == []

    world.clock.jump(by)

    assert await world.us.tick() == []
    assert world.us.ask("dev-2") == "dev-1"
    world.clock.wait(59.9)
    assert await world.us.tick() == []
    assert world.us.ask("dev-2") == "dev-1"
    world.clock.wait(1.1)  # the plugin's time is cut to whole seconds
    assert await world.us.tick() == ["dev-1"]


@pytest.mark.parametrize("by", [DAY, -DAY, timedelta(0)], ids=["forward", "back", "not at all"])
def test_a_restart_keeps_the_deadline_however_the_clock_has_jumped(by: timedelta, world: World) -> None:
    world.us.ask("dev-1", ttl_s=60)
    world.clock.wait(40)
    world.clock.jump(by)

    assert world.start().left_s() == 20


def test_a_restart_keeps_the_deadline_over_the_rotation_of_the_journal(world: World) -> None:
    world.us.ask("dev-1", ttl_s=60)
    world.us.store.journal.rotate()
    world.clock.wait(40)
    world.clock.jump(DAY)

    assert world.start().left_s() == 20


def test_in_another_boot_the_wall_clock_decides(world: World) -> None:
    world.us.ask("dev-1", ttl_s=60)
    world.clock.wall += timedelta(seconds=40)
    world.clock.s = 7.0  # the monotonic clock has begun again

    left_s = world.start(boot="the next one").left_s()

    assert left_s is not None
    assert 20 <= left_s <= 21


@pytest.mark.anyio
async def test_a_lease_from_the_future_is_not_given_away_and_ends_after_its_time(world: World) -> None:
    world.plugin("dev-1", age_s=-365 * 86400)

    assert await world.us.tick() == []
    world.clock.wait(59.9)
    assert await world.us.tick() == []
    assert world.us.ask("dev-2") == "dev-1"
    world.clock.wait(0.1)
    assert await world.us.tick() == ["dev-1"]


@pytest.mark.anyio
async def test_a_lease_of_the_plugin_ends_at_the_plugins_time(world: World) -> None:
    world.plugin("dev-1", age_s=59)
    assert await world.us.tick() == []

    world.clock.wait(1.9)  # its last second is the sixtieth after it was taken
    assert await world.us.tick() == []
    world.clock.wait(0.1)

    assert await world.us.tick() == ["dev-1"]


@pytest.mark.anyio
@pytest.mark.parametrize("ttl", [-1, -(10**12), -1e300], ids=str)
async def test_a_lease_with_zero_ttl_is_expired(ttl: float, world: World) -> None:
    world.plugin("dev-1", ttl=ttl)

    token(world.us.ask("dev-2"))
    world.plugin("dev-1", ttl=ttl)
    assert await world.us.tick() == ["dev-1"]


@pytest.mark.anyio
@pytest.mark.parametrize("ttl", ["60", "", None, [], {}], ids=repr)
async def test_a_lease_with_an_invalid_time_holds_five_minutes(ttl: object, world: World) -> None:
    world.plugin("dev-1", ttl=ttl)

    assert await world.us.tick() == []
    world.clock.wait(299.9)
    assert world.us.ask("dev-2") == "dev-1"
    world.clock.wait(1.1)
    assert await world.us.tick() == ["dev-1"]


@pytest.mark.anyio
@pytest.mark.parametrize("ttl", [10**12, 2**63, 10**400, 1e300], ids=lambda ttl: f"{float(str(ttl)[:300]):g}")
async def test_a_lease_for_ages_is_held_and_stops_nothing(ttl: float, world: World) -> None:
    world.plugin("dev-1", ttl=ttl)
    world.us.ask("dev-2", "another", ttl_s=1)
    world.clock.wait(86400)

    assert await world.us.tick() == ["dev-2"]
    assert world.us.ask("dev-2") == "dev-1"


@pytest.mark.anyio
async def test_a_lease_renewed_by_the_plugin_gets_its_full_ttl(world: World) -> None:
    world.us.ask("dev-1", ttl_s=60)
    world.clock.wait(59)
    await world.us.tick()
    world.plugin("dev-1")
    world.clock.wait(59)

    assert await world.us.tick() == []
    assert world.us.ask("dev-2") == "dev-1"


@pytest.mark.anyio
async def test_locks_and_broken_leases_are_never_ended_by_their_age(world: World) -> None:
    (world.locks / "src__a1.js.lock").write_bytes(as_plugin("dev-1", EPOCH - 365 * DAY))
    world.file.write_bytes(b"{")

    assert await world.us.tick() == []


# -- the names of resources -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        ("src/a1.js", "src__a1.js.lease"),
        ("../../x", "..__..__x.lease"),
        ("/etc/passwd", "__etc__passwd.lease"),
        ("a\\b", "a__b.lease"),
        ("two words ", "two_words_.lease"),
        ("a\nb", "a\nb.lease"),
        ("-rf", "-rf.lease"),
        (".", None),
        ("..", None),
        ("", None),
        ("\0", None),
        ("é" * 100, "é" * 100 + ".lease"),
        ("é" * 100 + "x", None),
    ],
    ids=repr,
)
def test_a_resource_is_named_as_the_plugin_names_it_or_not_at_all(resource: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(ValueError, match="cannot name a lease"):
            plugin_leases.lease_file(resource)
    else:
        assert plugin_leases.lease_file(resource) == name


@given(resource=st.text(max_size=300))
def test_a_lease_file_is_always_in_the_lease_folder(resource: str) -> None:
    try:
        name = plugin_leases.lease_file(resource)
    except ValueError:
        return

    assert "/" not in name
    assert "\0" not in name
    assert name.endswith(".lease")
    assert len(os.fsencode(f".{name}.4194304.tmp")) <= 255, "the file that is written beside it"


@pytest.mark.parametrize("resource", ["../../x", "a\nb", "x" * 200, "\udcff\udcfe.py", " "], ids=repr)
def test_a_lease_with_any_name_is_acquired_held_and_released(resource: str, world: World) -> None:
    token(world.us.ask("dev-1", resource))

    assert world.us.ask("dev-2", resource) == "dev-1"
    assert [held.lease.resource for held in world.start().leases.all(EPOCH)] == [resource]
    assert world.us.release("dev-1", resource) is Outcome.DONE
    assert list(world.locks.iterdir()) == []
    assert list(world.project.iterdir()) == [world.project / ".yolo-planning"]


def test_two_names_with_one_file_cannot_both_be_held(world: World) -> None:
    token(world.us.ask("dev-1", "a/b"))

    assert world.us.ask("dev-2", "a__b") == "dev-1"
    assert json.loads((world.locks / "a__b.lease").read_text())["resource"] == "a/b"


def test_asking_for_a_namesake_does_not_lose_a_lease(world: World) -> None:
    token(world.us.ask("dev-1", "a/b"))

    assert world.us.ask("dev-1", "a__b") == "dev-1"
    assert json.loads((world.locks / "a__b.lease").read_text())["resource"] == "a/b"


def test_a_lease_that_has_run_out_does_not_stand_in_the_way_of_its_namesake(world: World) -> None:
    first = token(world.us.ask("dev-1", "a/b", ttl_s=60))
    world.clock.wait(60)

    assert token(world.us.ask("dev-2", "a__b")) > first


def test_the_temporary_files_of_a_lease_are_no_leases(world: World) -> None:
    (world.locks / ".a.lease.412.tmp").write_bytes(as_plugin("dev-1"))

    assert world.us.leases.all(EPOCH) == []


# -- the default duration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [1, 60, plugin_leases.MAX_TTL_S])
def test_the_plugins_configuration_sets_the_time_of_a_lease(ttl: int) -> None:
    assert plugin_config.lease_ttl_s(json.dumps({"task_lease_ttl_secs": ttl}).encode()) == ttl


@pytest.mark.parametrize("ttl", [0, -1, True, "60", 60.5, None, [], plugin_leases.MAX_TTL_S + 1, 10**12], ids=repr)
def test_an_invalid_ttl_in_the_configuration_means_five_minutes(ttl: object) -> None:
    assert plugin_config.lease_ttl_s(json.dumps({"task_lease_ttl_secs": ttl}).encode()) == 300


@pytest.mark.parametrize("config", [b"", b"{}", b"[]", b"{", b"\xff"])
def test_without_a_configuration_a_lease_holds_five_minutes(config: bytes) -> None:
    assert plugin_config.lease_ttl_s(config) == 300


# -- a file that only one process can make -----------------------------------------------------------------------------


class NoLinks(QuickDisk):
    """A file system without hard links."""

    def __init__(self, number: int) -> None:
        self.number = number

    def link(self, old: Path, new: Path) -> None:
        raise OSError(self.number, os.strerror(self.number))


def test_a_file_that_is_there_is_not_made_again_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "document"
    path.write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        create(Disk(), path, b"ours")

    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "number",
    [errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV],
    ids=errno.errorcode.get,
)
def test_files_are_created_without_hard_link_support(number: int, tmp_path: Path) -> None:
    path = tmp_path / "document"

    create(NoLinks(number), path, b"ours")

    assert path.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_failed_link_makes_and_leaves_nothing(number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        create(NoLinks(number), tmp_path / "document", b"ours")

    assert list(tmp_path.iterdir()) == []
