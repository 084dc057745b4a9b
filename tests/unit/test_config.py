"""The configuration: the order of its layers, and the report of each mistake with its place, never a traceback."""

from __future__ import annotations

import os
import pwd
import random
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.project import trust
from yolo_supervisor.config import Config, ConfigError, expanded, known_keys, load, project_file, user_file
from yolo_supervisor.inventory.claude_homes import default_homes
from yolo_supervisor.service.manager import Systemd

relaxed = settings(deadline=None, max_examples=80)


class World:
    """A user's home and a project, each with or without a configuration."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        self.extra = folder / "extra.toml"
        self.environment = {"HOME": str(folder / "home")}
        self.users = user_file(self.environment)
        self.projects = project_file(self.project)
        for path in (self.users, self.projects):
            path.parent.mkdir(parents=True)

    def load(self, extra: Path | None = None, **overrides: Any) -> Config:
        """Load all layers; the user trusts the project's file."""
        if self.projects.exists():
            trust(self.project, self.environment)
        return load(self.project, extra, overrides, self.environment)

    def problems(self, extra: Path | None = None) -> list[str]:
        """The reports about a configuration that is refused."""
        with pytest.raises(ConfigError) as raised:
            self.load(extra)
        return str(raised.value).split("\n")

    def problem(self, text: str) -> str:
        """The report about a project's file with one mistake, without the file's name."""
        self.projects.write_text(text)
        (problem,) = self.problems()
        assert problem.startswith(f"{self.projects}:")
        return problem.removeprefix(f"{self.projects}:")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- layers -------------------------------------------------------------------------------------------------------


def test_without_any_file_everything_is_as_by_default(world: World) -> None:
    assert world.load() == Config()


def test_the_explained_configuration_is_the_default(world: World) -> None:
    explained = Path(__file__).parents[2] / "config" / "supervisor.toml"

    assert world.load(explained) == Config()
    written = {key for key in known_keys() if key in set(_keys(tomllib.loads(explained.read_text())))}
    assert written == set(known_keys())


def _keys(table: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _keys(value, (*above, key))


def test_every_layer_wins_over_those_below_it(world: World) -> None:
    found = [world.load().agents.interval_s]
    for path, interval_s in ((world.users, 1), (world.projects, 2), (world.extra, 3)):
        path.write_text(f"[agents]\ninterval_s = {interval_s}\n")
        found.append(world.load(world.extra if world.extra.exists() else None).agents.interval_s)
    found.append(world.load(world.extra, agents={"interval_s": 4.0}).agents.interval_s)

    assert found == [10.0, 1.0, 2.0, 3.0, 4.0]


def test_a_layer_wins_key_by_key_and_leaves_the_others_alone(world: World) -> None:
    world.users.write_text('claude_dir = "/c"\n[sessions]\non_detach = "drain"\ninterval_s = 7\n')
    world.projects.write_text('[sessions]\non_detach = "keep"\ndetach_grace_s = 0\n')

    found = world.load(mode="observe")

    assert (found.mode, found.claude_dir) == ("observe", "/c")
    assert (found.sessions.on_detach, found.sessions.interval_s, found.sessions.detach_grace_s) == ("keep", 7.0, 0.0)
    assert found.agents == Config().agents


def test_the_daemon_itself_has_no_project_file(world: World) -> None:
    world.projects.write_text('mode = "observe"\n')

    assert load(None, environment=world.environment) == Config()


def test_the_users_file_is_where_xdg_says() -> None:
    inside = Path("yolo-supervisor/supervisor.toml")

    assert user_file({"HOME": "/home/u", "XDG_CONFIG_HOME": "/etc/u"}) == Path("/etc/u") / inside
    assert user_file({"HOME": "/home/u", "XDG_CONFIG_HOME": ""}) == Path("/home/u/.config") / inside


# -- unknown keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('mod = "heal"', "1: unknown key 'mod'; did you mean 'mode'?"),
        ("[agents]\ninterval = 1", "2: unknown key 'agents.interval'; did you mean 'agents.interval_s'?"),
        ("agents.interval = 1", "1: unknown key 'agents.interval'; did you mean 'agents.interval_s'?"),
        ("\n\nagents = { interval = 1 }", "3: unknown key 'agents.interval'; did you mean 'agents.interval_s'?"),
        ("# a\n[sesions]\ninterval_s = 1", "2: unknown key 'sesions'; did you mean 'sessions'?"),
        ("[[sesions]]", "1: unknown key 'sesions'; did you mean 'sessions'?"),
        ("grace_s = 1", "1: unknown key 'grace_s'; did you mean 'processes.grace_s'?"),
        ("[agents]\non_detach = 'keep'", "2: unknown key 'agents.on_detach'; did you mean 'sessions.on_detach'?"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_reported_with_line_and_nearest_known_key(world: World, text: str, expected: str) -> None:
    assert world.problem(text) == expected


@pytest.mark.parametrize("key", ["zzzzzz", "agents.zzzzzz"])
def test_no_name_is_guessed_for_a_key_unlike_any_known_one(world: World, key: str) -> None:
    assert world.problem(f"{key} = 1") == f"1: unknown key '{key}'"


@given(seed=st.integers(0, 2**32))
@relaxed
def test_a_mistake_is_found_in_its_line_wherever_it_stands(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    rng = random.Random(seed)
    tables = {
        "": ['mode = "heal"', 'claude_dir = "[x]"  # y', ""],
        "[processes]": ["grace_s = 1", "sample_s=2"],
        "[ agents ]  # [sessions]": ["interval_s = 3", "# bogus = 0", "mass_death_min = 3"],
        "[sessions]": ["  interval_s = 4", 'on_detach = "keep"'],
    }
    for lines in tables.values():
        rng.shuffle(lines)
    unlucky = rng.choice(list(tables.values()))
    unlucky.insert(rng.randint(0, len(unlucky)), "bogus = 1")
    top, *named = tables.items()
    rng.shuffle(named)
    lines = [*top[1], *(line for header, body in named for line in (header, *body))]

    assert world.problem("\n".join(lines)).startswith(f"{lines.index('bogus = 1') + 1}: unknown key '")


# -- wrong values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ('[agents]\ninterval_s = "5"', "2: 'agents.interval_s': ", "expected 'float', got 'str'"),
        ("[agents]\ninterval_s = true", "2: 'agents.interval_s': ", "got 'bool'"),
        ("[agents]\nmass_death_min = 5.5", "2: 'agents.mass_death_min': ", "got 'float'"),
        ("[agents]\n\ninterval_s = 0", "3: 'agents.interval_s': ", "> 0"),
        ("agents.interval_s = -1", "1: 'agents.interval_s': ", "> 0"),
        ("agents.interval_s = 86401", "1: 'agents.interval_s': ", "<= 86400"),
        ("agents.interval_s = nan", "1: 'agents.interval_s': ", "> 0"),
        ("agents.interval_s = inf", "1: 'agents.interval_s': ", "<= 86400"),
        ("processes.grace_s = nan", "1: 'processes.grace_s': ", ">= 0"),
        ("processes.sample_s = 1e-9", "1: 'processes.sample_s': ", ">= 0.05"),
        ("processes.sample_s = 0.049", "1: 'processes.sample_s': ", ">= 0.05"),
        ('mode = "kill"', "1: 'mode': ", "'kill'"),
        ("mode = 2026-11-22", "1: 'mode': ", "expected 'str'"),
        ('[restart]\npolicy = "on_crash"', "2: 'restart.policy': ", "'on_crash'"),
        ('[restart.agents]\nqa = "never"\ndev = "yes"', "3: 'restart.agents.dev': ", "'yes'"),
        ('[restart.agents.dev]\npolicy = "never"', "1: 'restart.agents.dev': ", "got 'object'"),
        ('[restart.agents]\n"a\\u001b" = "never"', "1: 'restart.agents': ", "matching regex"),
        ('[restart.agents]\n"" = "never"', "1: 'restart.agents': ", "matching regex"),
        ("restart.agents = 5", "1: 'restart.agents': ", "got 'int'"),
        ("restart.agents = [5]", "1: 'restart.agents': ", "got 'array'"),
        ("[restart]\nmax_starts = 0", "2: 'restart.max_starts': ", ">= 1"),
        ("[restart]\nbackoff_max_s = nan", "2: 'restart.backoff_max_s': ", ">= 0"),
        ('[restart]\nnote = "-p"', "2: 'restart.note': ", "matching regex"),
        ('[log]\nformat = "xml"', "2: 'log.format': ", "'xml'"),
        ("agents = 5", "1: 'agents': ", "got 'int'"),
        ("[[agents]]\ninterval_s = 1", "1: 'agents': ", "got 'array'"),
        ("[mode]\nx = 1", "1: 'mode': ", "expected 'str'"),
        ("claude_dir = 7", "1: 'claude_dir': ", "expected 'str', got 'int'"),
        ('claude_dir = "/x\\u0000y"', "1: 'claude_dir': ", "no name holds a NUL character"),
        ('[state]\nfiles = ["a", "b\\u0000"]', "2: 'state.files': ", "no name holds a NUL character"),
    ],
)
def test_an_invalid_value_is_reported_with_line_and_valid_values(
    world: World, text: str, place: str, what: str
) -> None:
    problem = world.problem(text)

    assert problem.startswith(place)
    assert what in problem


def test_processes_may_be_sampled_twenty_times_a_second_at_most(world: World) -> None:
    world.projects.write_text("processes.sample_s = 0.05")

    assert world.load().processes.sample_s == 0.05


def test_all_errors_of_a_file_are_reported_together(world: World) -> None:
    world.projects.write_text('mod = "heal"\n[agents]\ninterval_s = 0\nintervall = 1\n[log]\nformat = "xml"\n')

    problems = world.problems()

    assert sorted(line.removeprefix(str(world.projects))[:3] for line in problems) == [":1:", ":3:", ":4:", ":6:"]


@pytest.mark.parametrize("which", ["users", "projects", "extra"])
def test_an_error_names_its_file(world: World, which: str) -> None:
    for each in ("users", "projects", "extra"):
        getattr(world, each).write_text("# fine\n" if each != which else "\nmode = 1\n")

    (problem,) = world.problems(world.extra)

    assert problem.startswith(f"{getattr(world, which)}:2: 'mode': ")


# -- files that cannot be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [("mode = \n", ":1"), ("\n[agents\n", ":2"), ("mode = 1\nmode = 2\n", ":2"), ("a\n", ":1"), ("x = [1,\n", ":1")],
)
def test_invalid_toml_is_reported_with_its_line(world: World, text: str, line: str) -> None:
    world.projects.write_text(text)

    (problem,) = world.problems()

    assert problem.startswith(f"{world.projects}{line}: not valid TOML: ")


def test_a_file_that_is_not_utf_8_is_reported(world: World) -> None:
    world.projects.write_bytes(b'claude_dir = "\xe9"\n')

    assert world.problems() == [f"{world.projects}: is not UTF-8 text"]


def test_the_file_named_on_the_command_line_must_exist(world: World) -> None:
    assert world.problems(world.extra) == [f"{world.extra}: there is no such file"]


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _deep(path: Path) -> None:
    path.write_text("x = " + "[" * 5_000)


def _long(path: Path) -> None:
    path.write_text("[agents]\ninterval_s = " + "9" * 5_000)


@pytest.mark.parametrize("make", [_folder, _loop, _deep, _long])
def test_an_unusable_file_is_reported_by_name(world: World, make: Callable[[Path], None]) -> None:
    make(world.projects)

    (problem,) = world.problems()

    assert problem.startswith(str(world.projects))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported_by_name(world: World) -> None:
    world.projects.write_text("")
    world.projects.chmod(0)

    (problem,) = world.problems()

    assert problem.startswith(f"{world.projects}: cannot be read")


def test_a_project_without_the_plugins_folder_has_no_file(world: World, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".yolo-planning").write_text("a file")

    for name in ("bare", "odd", "gone"):
        assert load(tmp_path / name, environment=world.environment) == Config()


# -- projects -----------------------------------------------------------------------------------------------------


def test_projects_are_named_by_the_user_or_on_the_command_line(world: World) -> None:
    world.users.write_text('projects = ["~/a"]\n')
    assert world.load().projects == ("~/a",)

    world.extra.write_text('projects = ["~/b", "~/c"]\n')
    assert world.load(world.extra).projects == ("~/b", "~/c")


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "relative"}, {}, {"HOME": ""}, {"XDG_CONFIG_HOME": "relative"},
        {"HOME": "/h", "XDG_CONFIG_HOME": "conf"}, {"HOME": "/h", "XDG_CONFIG_HOME": "/x"},
    ],
)  # fmt: skip
def test_units_and_configuration_share_a_folder_and_relative_paths_are_ignored(
    environment: dict[str, str],
) -> None:
    ours = pwd.getpwuid(os.getuid()).pw_dir
    folder = Path(environment["XDG_CONFIG_HOME"] if "/x" in environment.values() else
                  f"{'/h' if '/h' in environment.values() else ours}/.config")  # fmt: skip

    assert user_file(environment) == folder / "yolo-supervisor/supervisor.toml"
    assert Systemd("", environment).folder == Path(os.path.realpath(folder / "systemd/user"))
    assert default_homes(Config(), environment) == [Path("/h" if "/h" in environment.values() else ours) / ".claude"]


def test_a_tilde_stands_for_the_same_home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "relative")

    assert expanded("~/shop") == Path(pwd.getpwuid(os.getuid()).pw_dir) / "shop"


def test_a_projects_own_file_cannot_name_projects(world: World) -> None:
    assert world.problem('mode = "heal"\nprojects = ["/elsewhere"]\n').startswith("2: ")


@pytest.mark.parametrize("projects", ['"/a"', "[1]", "{}", "[[]]"])
def test_projects_are_a_list_of_folders(world: World, projects: str) -> None:
    world.extra.write_text(f"projects = {projects}\n")

    (problem,) = world.problems(world.extra)

    assert problem.startswith(f"{world.extra}:1: 'projects': expected ")


# -- restarts -----------------------------------------------------------------------------------------------------


def test_policies_of_agents_are_merged_name_by_name(world: World) -> None:
    world.users.write_text('[restart.agents]\ndev = "never"\n"qa 1@team.b" = "on-crash"\n')
    world.projects.write_text('[restart]\npolicy = "always"\nagents = { dev = "always" }\n')

    restart = world.load().restart

    assert restart.policy == "always"
    assert restart.agents == {"dev": "always", "qa 1@team.b": "on-crash"}


def test_a_table_of_agents_has_a_limit(world: World) -> None:
    world.projects.write_text("[restart.agents]\n" + "".join(f'a{n} = "never"\n' for n in range(501)))

    (problem,) = world.problems()

    assert problem.startswith(f"{world.projects}:1: 'restart.agents': ")


def test_a_projects_own_file_cannot_name_agents_that_are_restarted_when_they_stall(world: World) -> None:
    assert world.problem("[restart]\non_stall = []\n").startswith("2: ")
    assert world.problem('restart = { on_stall = ["dev"] }\n').startswith("1: ")

    world.projects.write_text("")
    world.users.write_text('[restart]\non_stall = ["dev"]\n')
    assert world.load().restart.on_stall == ("dev",)


# -- anything else ------------------------------------------------------------------------------------------------


def _settled(path: Path) -> Config | None:
    """The configuration of that file alone; None if it was refused with its name."""
    try:
        return load(None, path, environment={"HOME": str(path.parent)})
    except ConfigError as error:
        message = str(error)
    assert message.startswith(str(path))
    return None


@given(st.binary() | st.text("[]{}=.,\"'\n #axe_1-s", max_size=40).map(str.encode))
@example(b"\xef\xbb\xbfmode = 'heal'")
@example(b"\0")
@relaxed
def test_garbage_is_refused_and_never_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("garbage") / "supervisor.toml"
    path.write_bytes(data)

    assert _settled(path) in (None, Config())


names = st.sampled_from([part for key in known_keys() for part in key]) | st.text("abc_\"'.= é", max_size=6)
scalars = st.booleans() | st.integers(-9, 9) | st.floats() | st.sampled_from(["heal", "keep", "json"]) | st.dates()
tables = st.dictionaries(names, scalars | st.lists(scalars, max_size=2) | st.dictionaries(names, scalars, max_size=3))


@given(tables)
@relaxed
def test_any_tables_are_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("tables") / "supervisor.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")

    if found := _settled(path):
        assert 0 < found.agents.interval_s <= 86400
        assert found.agents.mass_death_min >= 2
        assert 0 <= found.processes.grace_s <= 3600
        assert found.mode in ("heal", "observe")
        assert all(isinstance(project, str) for project in found.projects)
