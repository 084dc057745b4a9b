"""The plugin and we at the same leases: each respects the other's, and the plugin's errors are not ours.

The plugin is a model here, after the observed behaviour of its version 2.9.8; real files of it prove the format.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cli import Cli
from support.project import SAMPLES, QuickDisk, given_back, read_task, write_task
from support.team import Team
from yolo_supervisor.actions.base import Edit
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.config import Config
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.formats.tasks import SET_ASIDE
from yolo_supervisor.inventory.leases import Held, Leases
from yolo_supervisor.inventory.stale_locks import StaleLocks
from yolo_supervisor.models import Task
from yolo_supervisor.policy.retry import RetryPolicy, requeue_or_dead_letter
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.watchers.leases import LeasesWatcher

EPOCH = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)
FILE = "src/a1.js"


class Clock:
    """The wall clock and the monotonic clock; ``wait`` moves both. Tenths of a second, counted exactly."""

    def __init__(self, at: datetime = EPOCH) -> None:
        self._at = at
        self._tenths = 0

    def now(self) -> datetime:
        return self._at + timedelta(seconds=self._tenths / 10)

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self._tenths / 10

    def wait(self, s: float) -> None:
        self._tenths += round(s * 10)

    def turn_back(self, by: timedelta) -> None:
        self._at -= by


class RealTime(Clock):
    def now(self) -> datetime:
        return datetime.now(UTC)


def stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pretty(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode()


class Plugin:
    """``yolo lease-lock`` and ``yolo lock`` with their errors."""

    def __init__(self, project: Path, clock: Clock) -> None:
        self.locks = project / ".yolo-planning" / ".locks"
        self.config = project / ".yolo-planning" / "config.json"
        self._clock = clock

    def acquire(self, resource: str, owner: str = "unknown", ttl: int = 300) -> str:
        """``acquired`` or ``renewed``; else the holder. 300 s stand for the configured time."""
        if self.configured("v3_lock_lite") is not True:
            return "skip"
        held = self.read(self.lease(resource))
        if held and not self.expired(held) and held["owner"] != owner:
            return f"conflict: {held['owner']}"
        self._write(resource, owner, self.configured("task_lease_ttl_secs") or 300 if ttl == 300 else ttl)
        return "renewed" if held and held["owner"] == owner else "acquired"

    def renew(self, resource: str, owner: str = "unknown", ttl: int = 300) -> str:
        held = self.read(self.lease(resource))
        if held and held["owner"] == owner:
            self._write(resource, owner, ttl)
            return "renewed"
        return "not_owner" if held else "not_held"

    def release(self, resource: str, owner: str = "unknown") -> str:
        held = self.read(self.lease(resource))
        if held and held["owner"] == owner:
            self.lease(resource).unlink()
            return "released"
        return "not_owner" if held else "not_held"

    def cleanup(self) -> None:
        for path in self.locks.glob("*.lease"):
            if (held := self.read(path)) and self.expired(held):
                path.unlink()

    def lock(self, resource: str, owner: str) -> str:
        path = self.lease(resource).with_suffix(".lock")
        if held := self.read(path):
            return "already_held" if held["owner"] == owner else f"conflict: {held['owner']}"
        path.write_bytes(pretty({"acquired_at": stamp(self._clock.now()), "owner": owner, "resource": resource}))
        return "acquired"

    def lease(self, resource: str) -> Path:
        return self.locks / (resource.replace("/", "__").replace("\\", "__").replace(" ", "_") + ".lease")

    def expired(self, lease: dict[str, Any]) -> bool:
        """Whether it has expired, by whole seconds; a cast makes a negative age a huge one."""
        try:
            acquired_at = datetime.fromisoformat(lease.get("acquired_at", ""))
        except (ValueError, TypeError):
            return True
        age_s = int((self._clock.now() - acquired_at).total_seconds()) % 2**64
        return age_s > int(lease.get("ttl_secs", 300))

    def read(self, path: Path) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        return value

    def configured(self, key: str) -> Any:
        return (self.read(self.config) or {}).get(key)

    def _write(self, resource: str, owner: str, ttl: int) -> None:
        said = {"acquired_at": stamp(self._clock.now()), "owner": owner, "resource": resource, "ttl_secs": ttl}
        self.lease(resource).write_bytes(pretty({**said, "type": "lease"}))


class Ours:
    """A process of ours, with the plugin's answers."""

    def __init__(self, project: Path, clock: Clock) -> None:
        self.store = Store(project, clock, QuickDisk())
        self.store.open()
        self._clock = clock
        self._leases = Leases(self.store, clock, "here")
        locks = StaleLocks(self.store, Processes(backend()), list, project / "pid-lock")
        self._watcher = LeasesWatcher(Config(), self._leases, locks)

    def acquire(self, resource: str, owner: str, ttl: int = 300) -> str:
        action = self._leases.lend(resource, owner, ttl, self._clock.now())
        if isinstance(action, Held):
            return f"conflict: {action.lease.owner}"
        assert self.store.commit(action, "test") is Outcome.DONE
        return "renewed" if action.verb == "renewed" else "acquired"

    def release(self, resource: str, owner: str) -> str:
        path = self.store.paths.planning / ".locks" / plugin_leases.lease_file(resource)
        outcome = self.store.commit(Release(key=resource, path=path, owner=owner, reason="given back"), "test")
        return "released" if outcome is Outcome.DONE else "not_owner"

    def holder(self, resource: str = FILE) -> str | None:
        held = self._leases.of(resource, self._clock.now())
        return held.lease.owner if held and held.left_s > 0 else None

    def token(self, resource: str = FILE) -> int:
        path = self.store.paths.planning / ".locks" / plugin_leases.lease_file(resource)
        token: int = self.store.index.leases[str(path)].token
        return token

    async def tick(self) -> list[str]:
        """The owners of the leases that the watcher ends now."""
        ended = []
        for (action,) in await self._watcher.tick(self._clock.now()):
            assert isinstance(action, Release)
            assert self.store.commit(action, "leases") is Outcome.DONE
            ended.append(action.owner)
        return ended


class World:
    def __init__(self, project: Path) -> None:
        self.project = project
        self.clock = Clock()
        self.plugin = Plugin(project, self.clock)
        self.plugin.locks.mkdir(parents=True)
        self.plugin.config.write_text('{"v3_lock_lite": true}')
        self.us = Ours(project, self.clock)

    @property
    def file(self) -> Path:
        return self.plugin.lease(FILE)

    def write(self, **changes: Any) -> None:
        """Write a lease of dev-1 in the plugin's format with these changes; None removes a key."""
        said = {"acquired_at": stamp(self.clock.now()), "owner": "dev-1", "resource": FILE, "ttl_secs": 60}
        found = {**said, "type": "lease", **changes}
        self.file.write_bytes(pretty({key: value for key, value in found.items() if value is not None}))

    def giver(self, name: str) -> Plugin | Ours:
        return self.plugin if name == "plugin" else self.us

    def end(self) -> None:
        self.us.store.close()


@pytest.fixture
def world(project: Path) -> Iterator[World]:
    started = World(project)
    yield started
    started.end()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for many examples, each of which leaves it unchanged."""
    started = World(tmp_path_factory.mktemp("project"))
    yield started
    started.end()


both = pytest.mark.parametrize("giver", ["plugin", "us"])

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip)
RESOURCES = NAMES.filter(lambda name: name.strip("."))


def up_to(s: int) -> st.SearchStrategy[float]:
    """A length of time in tenths of a second."""
    return st.integers(0, s * 10).map(lambda tenths: tenths / 10)


# -- one format -----------------------------------------------------------------------------------------------------


def real(name: str) -> Path:
    return SAMPLES / "plugin-output" / "live-tree-rust-after-stop" / ".locks" / name


def test_the_model_writes_the_plugins_bytes(world: World) -> None:
    lease, lock = real("src__a1.js.lease"), real("src__b1.js.lock")

    world.plugin.acquire("src/a1.js", "dev-01", 60)
    world.plugin.lock("src/b1.js", "dev-02")

    assert (world.plugin.locks / lease.name).read_bytes() == lease.read_bytes()
    assert (world.plugin.locks / lock.name).read_bytes() == lock.read_bytes()


@settings(max_examples=60, deadline=None)
@given(resource=RESOURCES, owner=NAMES, ttl=st.integers(1, plugin_leases.MAX_TTL_S))
def test_a_lease_of_ours_is_to_the_byte_the_plugins_own(resource: str, owner: str, ttl: int, lasting: World) -> None:
    file = lasting.plugin.lease(resource)
    assert lasting.us.acquire(resource, owner, ttl) == "acquired"
    ours = file.read_bytes()
    lasting.us.release(resource, owner)

    lasting.plugin.acquire(resource, owner, 1)
    lasting.plugin.renew(resource, owner, ttl)

    assert ours == file.read_bytes()
    assert lasting.us.release(resource, owner) == "released"
    assert list(lasting.plugin.locks.iterdir()) == []


# -- one holder -----------------------------------------------------------------------------------------------------


@both
@settings(max_examples=30, deadline=None)
@given(resource=RESOURCES, owner=NAMES, ttl=st.integers(1, 10**6))
def test_a_lease_granted_by_one_side_is_refused_by_the_other(
    giver: str, resource: str, owner: str, ttl: int, lasting: World
) -> None:
    other = lasting.us if giver == "plugin" else lasting.plugin
    assert lasting.giver(giver).acquire(resource, owner, ttl) == "acquired"
    before = lasting.plugin.lease(resource).read_bytes()

    assert other.acquire(resource, owner + "2") == f"conflict: {owner}"
    assert other.release(resource, owner + "2") == "not_owner"
    assert lasting.plugin.lease(resource).read_bytes() == before
    assert other.acquire(resource, owner, ttl) == "renewed"
    assert other.release(resource, owner) == "released"
    assert lasting.giver(giver).acquire(resource, owner + "2") == "acquired"
    assert lasting.us.release(resource, owner + "2") == "released"


@settings(max_examples=100, deadline=None)
@given(ttl=st.integers(1, 2), given_at=up_to(1), first_look=up_to(2), later=up_to(3))
def test_a_lease_of_the_plugin_holds_here_exactly_as_long_as_it_holds_there(
    ttl: int, given_at: float, first_look: float, later: float, lasting: World
) -> None:
    lasting.clock.wait(given_at)
    lasting.plugin.acquire(FILE, "dev-1", ttl)
    for wait in (first_look, later):
        lasting.clock.wait(wait)
        held = lasting.plugin.read(lasting.file)
        assert held is not None

        assert (lasting.us.holder() is None) == lasting.plugin.expired(held)
    lasting.plugin.release(FILE, "dev-1")


@settings(max_examples=100, deadline=None)
@given(ttl=st.integers(1, 2), given_at=up_to(1), later=up_to(4))
def test_a_lease_of_ours_holds_there_at_least_as_long_as_here_and_less_than_a_second_longer(
    ttl: int, given_at: float, later: float, lasting: World
) -> None:
    lasting.clock.wait(given_at)
    lasting.us.acquire(FILE, "dev-1", ttl)
    lasting.clock.wait(later)
    held = lasting.plugin.read(lasting.file)
    assert held is not None

    if lasting.us.holder() is not None:
        assert not lasting.plugin.expired(held)
    lasting.clock.wait(1)
    if lasting.us.holder() is None and later >= ttl:
        assert lasting.plugin.expired(held)
    lasting.plugin.release(FILE, "dev-1")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["plugin", "us"]),
        st.sampled_from(["acquire", "acquire", "release", "wait"]),
        st.sampled_from(["dev-1", "dev-2", "dev-3"]),
        st.sampled_from([1, 2, 3]),
    ),
    min_size=3,
    max_size=25,
)


@pytest.mark.thorough
@settings(max_examples=80, deadline=None)
@given(steps=STEPS, began=up_to(1))
def test_no_side_grants_a_lease_before_the_previous_one_expires(
    steps: list[tuple[str, str, str, int]], began: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("project"))
    world.clock.wait(began)
    holder, until_s = "", 0.0
    for giver, step, owner, length in steps:
        if step == "wait":
            world.clock.wait(length * 0.7)
        elif step == "release":
            answer = world.giver(giver).release(FILE, owner)
            assert answer == "released" or owner != holder or world.clock.monotonic() >= until_s
            holder = "" if answer == "released" else holder
        else:
            answer = world.giver(giver).acquire(FILE, owner, length)
            if holder not in ("", owner) and world.clock.monotonic() < until_s:
                assert answer == f"conflict: {holder}"
            elif not answer.startswith("conflict"):
                second = world.clock.monotonic() // 1  # the plugin's are whole ones
                holder, until_s = owner, (second if giver == "plugin" else world.clock.monotonic()) + length
    world.end()


@both
def test_a_renewal_with_either_side_counts_for_both(giver: str, world: World) -> None:
    other = world.us if giver == "plugin" else world.plugin
    world.giver(giver).acquire(FILE, "dev-1", 60)
    world.clock.wait(59)

    assert other.acquire(FILE, "dev-1", 60) == "renewed"

    world.clock.wait(59)
    assert world.us.acquire(FILE, "dev-2") == world.plugin.acquire(FILE, "dev-2") == "conflict: dev-1"


def test_an_expired_unclaimed_lease_can_be_renewed_as_with_the_plugin(world: World) -> None:
    world.plugin.acquire(FILE, "dev-1", 60)
    world.clock.wait(3600)

    assert world.us.acquire(FILE, "dev-1", 60) == "renewed"
    assert world.plugin.acquire(FILE, "dev-2") == "conflict: dev-1"


def test_a_lease_cleaned_up_by_the_plugin_is_free_with_a_greater_token(world: World) -> None:
    world.us.acquire(FILE, "dev-1", 60)
    first = world.us.token()
    world.plugin.cleanup()
    assert world.us.holder() == "dev-1"
    world.clock.wait(61)

    world.plugin.cleanup()

    assert not world.file.exists()
    assert world.us.acquire(FILE, "dev-1", 60) == "acquired"
    assert world.us.token() > first


@pytest.mark.anyio
async def test_our_cleanup_removes_the_same_leases_as_the_plugins(world: World) -> None:
    for owner, ttl in (("dev-1", 10), ("dev-2", 60)):
        world.plugin.acquire(owner, owner, ttl)
    await world.us.tick()
    world.clock.wait(30)

    assert await world.us.tick() == ["dev-1"]
    left = list(world.plugin.locks.iterdir())
    world.plugin.cleanup()
    assert list(world.plugin.locks.iterdir()) == left == [world.plugin.lease("dev-2")]


# -- odd files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "age_s", "held"),
    [
        ({"ttl_secs": None}, 300, True),
        ({"ttl_secs": None}, 301, False),
        ({"acquired_at": ""}, 0, False),
        ({"acquired_at": "soon"}, 0, False),
        ({"acquired_at": None}, 0, False),
        ({"acquired_at": 1795380910}, 0, False),
        ({"type": None}, 60, True),
        ({"type": None}, 61, False),
        ({"files": ["src/a1.js"]}, 60, True),
    ],
    ids=str,
)
def test_an_odd_lease_is_free_for_both_or_for_none(odd: dict[str, Any], age_s: int, held: bool, world: World) -> None:
    world.write(**odd)
    world.clock.wait(age_s)

    free = "conflict: dev-1" if held else "acquired"
    assert world.us.acquire(FILE, "dev-2") == free
    world.clock.wait(-age_s)
    world.write(**odd)
    world.clock.wait(age_s)
    assert world.plugin.acquire(FILE, "dev-2") == free


@pytest.mark.parametrize("torn", [b"", b"{", b'{"acquired_at": "2026-11-22T2', b"\0\0\0"], ids=repr)
def test_a_lease_that_cannot_be_read_is_free_for_both(torn: bytes, world: World) -> None:
    for each in (world.plugin, world.us):
        world.file.write_bytes(torn)
        os.utime(world.file, (0, 0))  # so old that no program is writing it

        assert each.acquire(FILE, "dev-2") == "acquired"


ZONES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@settings(max_examples=60, deadline=None)
@given(zone=ZONES, digits=st.sampled_from(["", ".5", ".977904", ".977904734"]), age_s=st.sampled_from([59, 60, 61, 62]))
def test_a_time_with_any_offset_is_the_same_time_for_both(
    zone: timezone, digits: str, age_s: int, lasting: World
) -> None:
    at = lasting.clock.now().astimezone(zone)
    lasting.write(acquired_at=f"{at:%Y-%m-%dT%H:%M:%S}{digits}{at.isoformat()[-6:]}")
    lasting.clock.wait(age_s)
    held = lasting.plugin.read(lasting.file)
    assert held is not None

    assert (lasting.us.holder() is None) == lasting.plugin.expired(held)
    lasting.file.unlink()


# -- by the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def cli(project: Path, claude_home: Path) -> Cli:
    (project / ".yolo-planning" / ".locks").mkdir()
    (project / ".yolo-planning" / "config.json").write_text('{"v3_lock_lite": true}')
    return Cli(project)


def test_a_lease_of_our_command_binds_the_plugin_until_its_release(cli: Cli) -> None:
    plugin = Plugin(cli.folder, RealTime())
    cli.json("lease", "acquire", FILE, "--owner", "dev-1")

    assert plugin.acquire(FILE, "dev-2") == "conflict: dev-1"
    assert plugin.renew(FILE, "dev-1") == "renewed"
    assert plugin.release(FILE, "dev-1") == "released"
    assert cli.json("lease", "list")["leases"] == []


def test_a_lease_of_the_plugin_binds_our_command_until_its_release(cli: Cli) -> None:
    plugin = Plugin(cli.folder, RealTime())
    plugin.acquire(FILE, "dev-1")

    assert cli.json("lease", "acquire", FILE, "--owner", "dev-2", code=1)["held_by"] == "dev-1"
    assert cli.json("lease", "renew", FILE, "--owner", "dev-1")["result"] == "renewed"
    assert cli.json("lease", "release", FILE, "--owner", "dev-1")["result"] == "released"
    assert plugin.acquire(FILE, "dev-2") == "acquired"


def ttl_of(cli: Cli, plugin: Plugin, *words: str) -> int:
    """The time to live of a lease that our command gives, in seconds."""
    assert cli("lease", "acquire", FILE, "--owner", "dev-1", *words).returncode == 0
    held = plugin.read(plugin.lease(FILE)) or {}
    plugin.release(FILE, "dev-1")
    return int(held["ttl_secs"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("configured", [1, 42, 86400, None], ids=str)
def test_without_a_time_to_live_both_take_the_configured_one(configured: int | None, cli: Cli) -> None:
    plugin = Plugin(cli.folder, RealTime())
    plugin.config.write_text(json.dumps({"v3_lock_lite": True, "task_lease_ttl_secs": configured}))
    ours = ttl_of(cli, plugin)

    plugin.acquire(FILE, "dev-1")

    assert (plugin.read(plugin.lease(FILE)) or {})["ttl_secs"] == ours == (configured or 300)


def test_an_explicit_time_to_live_holds_under_any_configuration_and_at_the_plugins_default(
    cli: Cli,
) -> None:
    plugin = Plugin(cli.folder, RealTime())
    plugin.config.write_text('{"v3_lock_lite": true, "task_lease_ttl_secs": 42}')

    assert ttl_of(cli, plugin, "--ttl", "60") == 60
    assert ttl_of(cli, plugin, "--ttl", "300") == 300
    plugin.acquire(FILE, "dev-1", 300)
    assert (plugin.read(plugin.lease(FILE)) or {})["ttl_secs"] == 42, "the plugin's error, which is not ours"


# -- locks are no leases --------------------------------------------------------------------------------------------


def test_a_lock_of_the_plugin_and_a_lease_of_ours_know_nothing_of_each_other(world: World) -> None:
    world.plugin.lock(FILE, "dev-1")
    lock = world.file.with_suffix(".lock")
    before = lock.read_bytes()

    assert world.us.acquire(FILE, "dev-2") == "acquired"
    assert world.plugin.lock(FILE, "dev-2") == "conflict: dev-1"
    assert world.us.release(FILE, "dev-2") == "released"

    assert list(world.plugin.locks.iterdir()) == [lock]
    assert lock.read_bytes() == before


@pytest.mark.anyio
async def test_a_lock_of_the_bash_version_is_left_alone(world: World) -> None:
    source = SAMPLES / "plugin-output" / "live-tree-bash-before-stop" / ".locks"
    shutil.copytree(source, world.plugin.locks, dirs_exist_ok=True)
    assert await world.us.tick() == []
    world.clock.wait(366 * 86400)

    assert await world.us.tick() == []
    assert world.us.acquire("5-1-T1", "dev-2") == "acquired"
    for path in source.glob("*.lock"):
        assert (world.plugin.locks / path.name).read_bytes() == path.read_bytes()


# -- errors of the plugin -------------------------------------------------------------------------------------------


def test_d2_only_tasks_of_the_dead_agent_are_requeued(team: Team) -> None:
    team.supervise()
    agent, living = team.agent("dev-1"), team.agent("dev-1", "blue")
    own, namesakes = team.task("dev-1"), team.task("dev-1", "blue")
    roles, others = team.task("dev"), write_task(team.claude, "green", 1, "dev-1", "in_progress")
    before = {path: path.read_bytes() for path in (namesakes, roles, others)}

    agent.kill()

    team.wait_healed("dev-1")
    assert given_back(own)
    assert {path: path.read_bytes() for path in before} == before
    assert living.poll() is None


def test_d2_a_task_is_not_requeued_while_the_client_writes_it(team: Team) -> None:
    team.supervise()
    agent, task = team.agent("dev-1"), team.task("dev-1")
    before = task.read_bytes()
    lock = task.with_name(f"{task.name}.lock")
    lock.mkdir()

    agent.kill()
    team.running.wait(lambda: team.running.did("died", "dev-1@red"), "its death to be seen")
    team.wait_looks(1)
    assert task.read_bytes() == before
    lock.rmdir()

    team.wait_given_back(task)


@pytest.mark.thorough
def test_d2_a_task_that_the_plugin_took_from_a_dead_agent_is_claimable(team: Team) -> None:
    task = write_task(team.claude, "red", 1, "dev-1", "in_progress")
    task.write_bytes(pretty({**read_task(task), "owner": ""}))
    config = team.claude / "teams" / "red" / "config.json"
    config.parent.mkdir(parents=True)
    member = {"agentId": "lead@red", "name": "lead", "cwd": str(team.project), "tmuxPaneId": "%1"}
    config.write_text(json.dumps({"name": "red", "members": [member]}))

    team.supervise("[tasks]\ninterval_s = 0.3\nunknown_limit_s = 0.5\n")

    team.wait_given_back(task)


def test_d3_an_agent_whose_team_the_plugin_has_swept_away_lives_on_and_is_watched(team: Team) -> None:
    inboxes = team.claude / "teams" / "red" / "inboxes"
    inboxes.mkdir(parents=True)  # empty: infinitely old, says the plugin
    os.utime(inboxes, (0, 0))
    team.supervise()
    agent = team.agent("dev-1")
    task = team.task("dev-1")
    team.wait_looks()
    assert inboxes.exists()

    shutil.rmtree(team.claude / "teams" / "red")
    shutil.rmtree(task.parent)
    team.wait_looks()

    assert agent.poll() is None
    assert team.running.did("died", "dev-1@red") == []
    task = team.task("dev-1")
    agent.kill()
    team.wait_given_back(task)


def test_d12_a_lease_holds_here_under_any_flags_and_there_once_the_plugin_looks(world: World) -> None:
    world.plugin.config.write_text('{"v3_lease_locks": true, "v3_lock_lite": false}')
    assert world.us.acquire(FILE, "dev-1") == "acquired"
    before = world.file.read_bytes()

    assert world.plugin.acquire(FILE, "dev-2") == "skip"
    assert world.us.acquire(FILE, "dev-2") == "conflict: dev-1"
    world.plugin.config.write_text('{"v3_lock_lite": true}')

    assert world.plugin.acquire(FILE, "dev-2") == "conflict: dev-1"
    assert world.file.read_bytes() == before


@pytest.mark.anyio
@pytest.mark.parametrize("ahead", [timedelta(seconds=2), timedelta(days=365)], ids=str)
async def test_d13_a_lease_from_the_future_is_stolen_there_and_not_here(ahead: timedelta, world: World) -> None:
    world.write(acquired_at=stamp(world.clock.now() + ahead))
    before = world.file.read_bytes()

    assert world.us.acquire(FILE, "dev-2") == "conflict: dev-1"
    assert await world.us.tick() == []
    world.clock.wait(59.9)
    assert world.us.acquire(FILE, "dev-2") == "conflict: dev-1"
    assert world.file.read_bytes() == before

    world.clock.wait(3.1)
    assert world.us.acquire(FILE, "dev-2") == "acquired"
    world.write(acquired_at=stamp(world.clock.now() + ahead))
    assert world.plugin.acquire(FILE, "dev-2") == "acquired", "the plugin's error, which is not ours"


def test_d13_the_owner_learns_that_the_plugin_took_its_lease_after_a_clock_change(world: World) -> None:
    world.us.acquire(FILE, "dev-1", 60)
    first = world.us.token()
    world.clock.turn_back(timedelta(days=1))
    assert world.us.acquire(FILE, "dev-2") == "conflict: dev-1"

    assert world.plugin.acquire(FILE, "dev-2", 60) == "acquired"

    assert world.us.acquire(FILE, "dev-1") == "conflict: dev-2"
    assert world.us.release(FILE, "dev-1") == "not_owner"
    world.us.acquire(FILE, "dev-2")
    assert world.us.token() > first


def test_d24_leases_of_a_dead_agent_are_released_and_the_history_names_the_agent(team: Team) -> None:
    plugin = Plugin(team.project, RealTime())
    plugin.locks.mkdir()
    plugin.config.write_text('{"v3_lock_lite": true}')
    team.supervise()
    agent, task = team.agent("dev-1"), team.task("dev-1")
    team.agent("dev-2")
    for owner in ("dev-1", "dev-2"):
        plugin.acquire(f"src/{owner}.js", owner)
        plugin.lock(f"src/{owner}.js", owner)

    agent.kill()

    team.wait_healed("dev-1")
    assert given_back(task)
    assert sorted(path.name for path in plugin.locks.iterdir()) == ["src__dev-2.js.lease", "src__dev-2.js.lock"]
    released = team.running.did("released", "src/dev-1.js")
    assert [each["evidence"]["owner"] for each in released] == ["dev-1", "dev-1"]


# -- a dead letter and the client -----------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", [SET_ASIDE, "dev-2"])
def test_a_dead_letter_started_by_a_model_is_set_aside_again(owner: str, project: Path, claude_home: Path) -> None:
    """The client lets any model start one, with its name or without; no person has decided yet."""
    path = write_task(claude_home, "red", 1)
    clock = Clock()
    with closing(Store(project, clock, QuickDisk())) as store:
        store.open()
        queue = RetryPolicy(Config(), store, clock, "here")

        def after_failing(by: str, cause: str) -> tuple[str, str | None]:
            """The status and the owner of the task after a failed attempt."""
            path.write_text(json.dumps({**read_task(path), "status": "in_progress", "owner": by}))
            task = Task(list="red", number="1", status="in_progress", owner=by, path=path)
            for action in requeue_or_dead_letter(
                task, queue.decide(task, cause), store.paths.folder / "dead-letters", cause, {}
            ):
                assert isinstance(action, Edit)
                assert store.commit(action, "test") is Outcome.DONE
            found = read_task(path)
            return found["status"], found.get("owner")

        assert after_failing("dev-1", "died") == ("pending", None)
        assert after_failing("dev-1", "died") == ("pending", SET_ASIDE)  # the same cause twice, with an attempt left
        clock.wait(3600)

        assert after_failing(owner, "silent") == ("pending", SET_ASIDE)
