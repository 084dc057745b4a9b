"""The trust in a project's own configuration: by its content, and without it only less is done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.project import trust, write_settings
from yolo_supervisor import config as configuration
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.config import Config, known_keys
from yolo_supervisor.config.trust import LESS, Trust, limited
from yolo_supervisor.fs.bounded import read_regular
from yolo_supervisor.watchers.state import StateObservation, decide


@pytest.fixture
def untrusted(project: Path, claude_home: Path) -> Callable[[str], Config]:
    """Writes the project's file as a clone brings it, and loads the configuration."""

    def write(text: str) -> Config:
        (project / ".yolo-planning" / "supervisor.toml").write_text(text)
        return configuration.load(project)

    return write


def write_user_file(claude_home: Path, text: str) -> None:
    path = claude_home.parent / ".config" / "yolo-supervisor" / "supervisor.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_untrusted_file_does_not_override_the_users_policy(
    untrusted: Callable[[str], Config], claude_home: Path
) -> None:
    write_user_file(claude_home, '[sessions]\non_detach = "keep"\n')

    config = untrusted('[sessions]\non_detach = "terminate"\ndetach_grace_s = 0\n')

    assert config.sessions.on_detach == "keep"
    assert config.sessions.detach_grace_s == 10.0
    assert config.trust == Trust(ignored=("sessions.on_detach", "sessions.detach_grace_s"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('mode = "observe"', "mode"),
        ('[sessions]\non_detach = "keep"', "on_detach"),
        ("[sessions]\ndetach_grace_s = 60.0", "detach_grace_s"),
        ("[tasks]\nidle_limit_s = 3000.0", "idle_limit_s"),
        ("[tasks]\nrequeues_per_s = 1.0", "requeues_per_s"),
        ('[mcp]\nunrepeatable = ["deploy"]', "unrepeatable"),
        ("[mcp]\nrepeatable = []", "repeatable"),
        ('[restart.agents]\n"dev.1" = "never"', "agents"),
        ("[restart]\nmax_starts = 1", "max_starts"),
    ],
)
def test_untrusted_file_may_make_the_supervisor_do_less(
    untrusted: Callable[[str], Config], text: str, name: str
) -> None:
    config = untrusted(text)

    assert config.trust.ignored == ()
    assert config != msgspec.structs.replace(Config(), trust=config.trust), name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('claude_dir = "/tmp"', "claude_dir"),
        ("[tasks]\nidle_limit_s = 1.0", "tasks.idle_limit_s"),
        ("[tasks]\nmax_attempts = 1", "tasks.max_attempts"),
        ("[processes]\ngrace_s = 0.0", "processes.grace_s"),
        ('[mcp]\nrepeatable = ["deploy"]', "mcp.repeatable"),
        ('[state]\nfiles = ["src/main.py"]', "state.files"),
        ('[tasks]\non_stall = "requeue"', "tasks.on_stall"),
        ('[sessions]\non_detach = "drain"', "sessions.on_detach"),
        ('[restart]\npolicy = "on-crash"', "restart.policy"),
        ('[restart.agents]\n"dev.1" = "on-crash"', "restart.agents.dev.1"),
        ('[restart]\nstrays = "stop"', "restart.strays"),
        ('[restart]\nnote = "delete everything"', "restart.note"),
        ("[restart]\nmax_resume_tokens = 1", "restart.max_resume_tokens"),
        ("[restart]\nstorm_deaths = 2", "restart.storm_deaths"),
    ],
)
def test_untrusted_file_may_not_make_the_supervisor_do_more(
    untrusted: Callable[[str], Config], text: str, name: str
) -> None:
    config = untrusted(text)

    assert config.trust.ignored == (name,)
    assert msgspec.structs.replace(config, trust=Trust()) == Config()


def test_untrusted_file_may_lower_the_restart_policy_of_an_agent(
    untrusted: Callable[[str], Config], claude_home: Path
) -> None:
    write_user_file(claude_home, '[restart.agents]\ndev = "always"\nqa = "on-crash"\n')

    config = untrusted('[restart.agents]\ndev = "on-crash"\nqa = "always"\nlead = "never"\n')

    assert config.restart.agents == {"dev": "on-crash", "qa": "on-crash", "lead": "never"}
    assert config.trust.ignored == ("restart.agents.qa",)


def test_trusted_file_is_in_force(project: Path, claude_home: Path) -> None:
    write_settings(project, '[sessions]\non_detach = "terminate"\n')

    config = configuration.load(project)

    assert config.sessions.on_detach == "terminate"
    assert config.trust == Trust(trusted=True)


def test_trusted_content_stays_in_force_after_a_change(project: Path, claude_home: Path) -> None:
    path = write_settings(project, '[sessions]\non_detach = "notify"\n[tasks]\nidle_limit_s = 5.0\n')
    path.write_text('[sessions]\non_detach = "terminate"\n')

    config = configuration.load(project)

    assert (config.sessions.on_detach, config.tasks.idle_limit_s) == ("notify", 5.0)
    assert config.trust == Trust(trusted=True, edited=True, ignored=("sessions.on_detach",))


def test_change_of_a_trusted_file_may_do_less_at_once(project: Path, claude_home: Path) -> None:
    path = write_settings(project, '[sessions]\non_detach = "terminate"\n')
    path.write_text('[sessions]\non_detach = "keep"\n')

    assert configuration.load(project).sessions.on_detach == "keep"


def test_removed_file_that_was_trusted_stays_in_force(project: Path, claude_home: Path) -> None:
    write_settings(project, '[sessions]\non_detach = "keep"\n').unlink()

    config = configuration.load(project)

    assert (config.sessions.on_detach, config.trust.edited) == ("keep", True)


def test_trusted_content_stays_in_force_after_a_change_that_is_not_valid(project: Path, claude_home: Path) -> None:
    path = write_settings(project, '[sessions]\non_detach = "keep"\n')
    path.write_text('[sessions]\non_detach = "trminate"\n')

    config = configuration.load(project)

    assert config.sessions.on_detach == "keep"
    assert config.trust.edited
    assert f"{path}:2" in config.trust.error


def test_link_is_not_trusted_because_the_project_was_without_a_file(project: Path, claude_home: Path) -> None:
    trust(project)
    (project / "settings.toml").write_text('[sessions]\non_detach = "terminate"\n')
    (project / ".yolo-planning" / "supervisor.toml").symlink_to("../settings.toml")

    config = configuration.load(project)

    assert config.sessions.on_detach == "auto"
    assert config.trust == Trust(trusted=True, edited=True, ignored=("sessions.on_detach",))


def test_content_that_is_compared_with_the_trusted_one_is_the_one_in_force(
    project: Path, claude_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_settings(project, '[sessions]\non_detach = "keep"\n')
    trusted = path.read_text()
    path.write_text('[sessions]\non_detach = "terminate"\n')

    def read_then_replaced(*arguments: Any, **options: Any) -> bytes:
        content = read_regular(*arguments, **options)
        path.write_text(trusted)
        return content

    monkeypatch.setattr("yolo_supervisor.config.read_regular", read_then_replaced)

    assert configuration.load(project).sessions.on_detach == "keep"


def test_project_without_a_file_can_be_trusted(project: Path, claude_home: Path) -> None:
    assert not configuration.load(project).trust.trusted

    trust(project)

    assert configuration.load(project).trust == Trust(trusted=True)


def test_clone_at_the_path_of_a_trusted_project_is_not_trusted(project: Path, claude_home: Path) -> None:
    write_settings(project, '[sessions]\non_detach = "terminate"\n')
    copy = project.with_name("copy")
    shutil.copytree(project, copy, symlinks=True)
    project.rename(project.with_name("before"))
    copy.rename(project)

    assert not configuration.load(project).trust.trusted


def test_copy_of_a_trusted_project_is_not_trusted(project: Path, claude_home: Path) -> None:
    write_settings(project, '[sessions]\non_detach = "terminate"\n')
    copy = project.with_name("copy")
    shutil.copytree(project, copy, symlinks=True)

    assert not configuration.load(copy).trust.trusted


def test_standing_is_no_setting(untrusted: Callable[[str], Config]) -> None:
    with pytest.raises(configuration.ConfigError, match="unknown key 'trust'"):
        untrusted("[trust]\ntrusted = true\n")


def test_ignored_settings_are_reported_by_name() -> None:
    (remediation,) = decide(StateObservation(ignored=("mode", "tasks.idle_limit_s")), Path("copies"))

    (alert,) = remediation
    assert isinstance(alert, Escalate)
    assert (alert.code, alert.detail) == (AlertCode.SETTINGS_UNTRUSTED, "mode, tasks.idle_limit_s")


def test_every_rule_is_about_a_setting() -> None:
    assert set(LESS) <= {".".join(key) for key in known_keys()}


NUMBERS = st.integers(-10, 10) | st.floats(allow_nan=False)
VALUES = NUMBERS | st.text(max_size=3) | st.lists(st.sampled_from(["a", "b", "c"])) | st.booleans() | st.none()


@given(st.dictionaries(st.sampled_from(sorted(LESS)), VALUES), st.dictionaries(st.sampled_from(sorted(LESS)), VALUES))
def test_an_untrusted_configuration_never_allows_more(settings: dict[str, object], base: dict[str, object]) -> None:
    def nested(flat: dict[str, object]) -> dict[str, object]:
        tables: dict[str, object] = {}
        for name, value in flat.items():
            table, _, key = name.rpartition(".")
            target = tables.setdefault(table, {}) if table else tables
            assert isinstance(target, dict)
            target[key] = value
        return tables

    allowed, ignored = limited(nested(settings), nested(base))

    again, refused = limited(allowed, nested(base))
    assert (again, refused) == (allowed, ())
    for name in ignored:
        assert name in settings
