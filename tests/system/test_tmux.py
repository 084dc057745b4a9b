"""tmux is asked over its socket: its answer is taken literally, and no answer means unknown.

Every server here is private, on a socket in the test's folder.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.processes import Children
from support.tmux import PrivateTmux
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.models import Pane
from yolo_supervisor.system import tmux as module
from yolo_supervisor.system.tmux import PaneState, Server, Tmux, pane_of, parse

OTHER_USER = 65534


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon on a server that does not answer."""
    monkeypatch.setattr(module, "LIMIT_S", 0.2)


async def look(socket: str) -> Server | None:
    with anyio.fail_after(LIMIT_S):
        return await Tmux(SystemClock()).look(socket)


# -- answers ----------------------------------------------------------------------------------------------------


async def test_a_server_names_its_sessions_and_their_panes(tmux: PrivateTmux) -> None:
    one, two = tmux.session("one"), tmux.session("two")

    assert await look(tmux.socket) == Server(
        socket=tmux.socket,
        pid=tmux.server.pid,
        names={"$0": "one", "$1": "two"},
        attached={"$0": 0, "$1": 0},
        panes={"%0": PaneState(one, ("$0",), dead=False), "%1": PaneState(two, ("$1",), dead=False)},
    )


async def test_people_are_counted_and_programs_are_not(tmux: PrivateTmux) -> None:
    tmux.session("watched")
    tmux.session("left")
    tmux.person("watched")
    tmux.person("watched")
    tmux.program("watched")
    tmux.program("left")

    server = await look(tmux.socket)

    assert server is not None
    assert server.attached == {"$0": 2, "$1": 0}


async def test_a_person_in_the_control_mode_of_a_terminal_is_counted(tmux: PrivateTmux) -> None:
    tmux.session("work")
    tmux.session("other")
    tmux.person("work", "-CC")
    tmux.program("work")

    server = await look(tmux.socket)

    assert server is not None
    assert server.attached == {"$0": 1, "$1": 0}
    assert [len(people) for people in server.people.values()] == [1]


async def test_a_detached_client_is_not_counted(tmux: PrivateTmux) -> None:
    tmux.session("work")
    tmux.leave(tmux.person("work"))

    server = await look(tmux.socket)

    assert server is not None
    assert server.attached == {"$0": 0}


async def test_a_kept_pane_reports_its_programs_exit(tmux: PrivateTmux) -> None:
    alive = tmux.session("work")
    tmux("set-option", "-g", "remain-on-exit", "on")
    tmux("new-window", "-d", "-t", "work", "exit 3")
    tmux("new-window", "-d", "-t", "work", "kill -9 $$")
    wait_until(lambda: tmux.ends("work") == ["/", "3/", "/9"], "tmux to know of both ends")

    server = await look(tmux.socket)

    assert server is not None
    assert server.panes["%0"] == PaneState(alive, ("$0",), dead=False, status=None, signal=None)
    exited, killed = server.panes["%1"], server.panes["%2"]
    assert (exited.dead, exited.status, exited.signal) == (True, 3, None)
    assert (killed.dead, killed.status, killed.signal) == (True, None, 9)


async def test_a_linked_window_is_shown_by_both_sessions(tmux: PrivateTmux) -> None:
    tmux.session("one")
    tmux.session("two")
    tmux("link-window", "-s", "one:0", "-t", "two:5")

    server = await look(tmux.socket)

    assert server is not None
    assert set(server.panes["%0"].sessions) == {"$0", "$1"}
    assert server.panes["%1"].sessions == ("$1",)


async def test_a_session_that_shows_a_window_twice_is_named_once(tmux: PrivateTmux) -> None:
    tmux.session("work")
    tmux("link-window", "-s", "work:0", "-t", "work:5")

    server = await look(tmux.socket)

    assert server is not None
    assert server.panes["%0"].sessions == ("$0",)


@pytest.mark.parametrize(
    "name",
    ["two words", " ", "ünï ✓", "#{pid}", "S 1 $9 x", "P %9 $0 1 0__", "$0", "'\""],
)
async def test_a_session_may_have_any_name(tmux: PrivateTmux, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    pid = tmux.session(name)

    server = await look(tmux.socket)

    assert server is not None
    assert server.names == {"$0": name}
    assert server.panes == {"%0": PaneState(pid, ("$0",), dead=False)}


async def test_the_next_server_on_a_socket_is_another_one(tmux: PrivateTmux) -> None:
    tmux.session("work")
    before = await look(tmux.socket)

    tmux.server.kill()
    tmux.server.wait(LIMIT_S)
    tmux.start()
    tmux.session("work")
    after = await look(tmux.socket)

    assert before is not None
    assert after is not None
    assert before.pid != after.pid == tmux.server.pid


async def test_a_fresh_look_is_not_taken_again(tmux: PrivateTmux) -> None:
    asked = Tmux(SystemClock())
    tmux.session("one")
    before = await asked.look(tmux.socket)
    tmux.session("two")

    again = await asked.look(tmux.socket, fresh_s=1000.0)
    later = await asked.look(tmux.socket)

    assert before is again
    assert later is not None
    assert set(later.names.values()) == {"one", "two"}


# -- no answer --------------------------------------------------------------------------------------------------


async def test_a_socket_that_is_not_there_says_nothing_and_no_server_is_started(tmp_path: Path) -> None:
    missing = tmp_path / "tmux"

    assert await look(str(missing)) is None
    assert not missing.exists()


async def test_a_dead_server_says_nothing_and_none_is_started_in_its_place(tmux: PrivateTmux) -> None:
    tmux.session("work")
    tmux.server.kill()
    tmux.server.wait(LIMIT_S)
    assert Path(tmux.socket).exists()

    assert await look(tmux.socket) is None
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(tmux.socket)


async def test_a_server_without_a_session_is_unknown(tmux: PrivateTmux) -> None:
    assert await look(tmux.socket) is None


@pytest.mark.usefixtures("brisk")
async def test_a_stopped_server_says_nothing_until_it_goes_on(tmux: PrivateTmux) -> None:
    tmux.session("work")
    tmux.server.send_signal(signal.SIGSTOP)
    os.waitpid(tmux.server.pid, os.WUNTRACED)
    assert await look(tmux.socket) is None

    tmux.server.send_signal(signal.SIGCONT)

    with anyio.fail_after(LIMIT_S):
        while await look(tmux.socket) is None:
            pass


@pytest.mark.usefixtures("brisk")
async def test_a_listener_that_is_no_tmux_is_unknown(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()

        assert await look(str(tmp_path / "mute")) is None


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"\0junk" * 99)])
async def test_a_path_that_is_no_socket_gives_no_answer(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "tmux")

    assert await look(str(tmp_path / "tmux")) is None


@pytest.mark.parametrize("name", ["", "relative", "/" + "x" * 300, "/tmp/" + "x/" * 3000, "/proc/1/root/\0"])
async def test_an_impossible_socket_is_unknown(name: str) -> None:
    assert await look(name) is None


async def test_without_the_program_nothing_is_known(tmux: PrivateTmux, monkeypatch: pytest.MonkeyPatch) -> None:
    tmux.session("work")

    monkeypatch.setenv("PATH", "/nowhere")

    assert await look(tmux.socket) is None


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("end", ["exit 1", "sleep 600"])
async def test_an_answer_that_breaks_off_is_none(tmp_path: Path, shadow: Callable[[str, str], None], end: str) -> None:
    shadow("tmux", f"echo 'S 4242 $0 work'\n{end}")  # its panes are missing: all seem to be gone
    with socket.socket(socket.AF_UNIX) as unserved:
        unserved.bind(str(tmp_path / "tmux"))
        unserved.listen()

        assert await look(str(tmp_path / "tmux")) is None


async def test_a_server_is_asked_through_links_of_ours(tmux: PrivateTmux, tmp_path: Path) -> None:
    tmux.session("work")
    (tmp_path / "link").symlink_to(Path(tmux.socket).parent)

    assert await look(str(tmp_path / "link" / "tmux")) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
@pytest.mark.parametrize(
    "give",
    [
        pytest.param(lambda socket: os.chown(socket, OTHER_USER, OTHER_USER), id="its socket"),
        pytest.param(lambda socket: os.chown(socket.parent, OTHER_USER, OTHER_USER), id="its folder"),
        pytest.param(lambda socket: socket.parent.chmod(0o777), id="a folder for all"),
    ],
)
async def test_a_server_that_another_user_may_have_put_there_is_not_asked(
    tmux: PrivateTmux, give: Callable[[Path], object]
) -> None:
    tmux.session("work")
    assert await look(tmux.socket) is not None

    give(Path(tmux.socket))

    assert await look(tmux.socket) is None
    assert module.ask_now(tmux.socket) is None
    assert not await module.show_message(tmux.socket, "/dev/pts/0", "hello")
    assert await module.last_words(Pane(socket=tmux.socket, server_pid=tmux.server.pid, pane="%0"), LIMIT_S) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes of other users")
async def test_our_socket_is_not_asked_if_another_user_serves_it(
    tmp_path: Path, shadow: Callable[[str, str], None], children: Children
) -> None:
    shadow("tmux", f"touch {tmp_path}/asked\necho 'S 4242 $0 work'")
    path = tmp_path / "tmux"
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(path))
        number = ours.fileno()
        serve = f"import os, socket, time; os.setuid({OTHER_USER}); socket.socket(fileno={number}).listen()"
        children.python(f"{serve}; print('ready', flush=True); time.sleep(600)", pass_fds=(number,))

    assert await look(str(path)) is None
    assert module.ask_now(str(path)) is None
    assert not (tmp_path / "asked").exists()


# -- the answer is read ------------------------------------------------------------------------------------------


words = st.sampled_from(["S", "C", "P", "0", "1", "$0", "%0", "7", "0::", "1:3:", "1::9", "x", "", "9" * 5000, "²"])


@given(st.text() | st.lists(st.lists(words).map(" ".join)).map("\n".join))
def test_any_answer_of_tmux_can_be_parsed(answer: str) -> None:
    server = parse("/socket", answer)

    assert server is None or server.pid


names = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1)
panes = st.builds(
    PaneState,
    pid=st.integers(2, 2**22),
    sessions=st.just(("$0",)),
    dead=st.booleans(),
    status=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
)


@given(name=names, people=st.integers(0, 3), programs=st.integers(0, 3), shown=st.lists(panes))
def test_server_output_is_taken_literally(name: str, people: int, programs: int, shown: list[PaneState]) -> None:
    ends = [f"{p.dead:d}:{'' if p.status is None else p.status}:{p.signal or ''}" for p in shown]
    lines = [
        f"S 4242 $0 {name}",
        *(f"C $0 {100 + number} /dev/pts/{number}" for number in range(people)),
        *(["C $0 99 "] * programs),
        *(f"P %{n} $0 {pane.pid} {end}" for n, (pane, end) in enumerate(zip(shown, ends, strict=True))),
    ]

    assert parse("/socket", "".join(f"{line}\n" for line in lines)) == Server(
        socket="/socket",
        pid=4242,
        names={"$0": name},
        attached={"$0": people},
        panes={f"%{n}": pane for n, pane in enumerate(shown)},
        people={"$0": frozenset(f"/dev/pts/{number}" for number in range(people))} if people else {},
        clients={100 + number: f"/dev/pts/{number}" for number in range(people)},
    )


@pytest.mark.parametrize(
    ("environment", "pane"),
    [
        ({"TMUX": "/tmp/s,77,0", "TMUX_PANE": "%5"}, Pane(socket="/tmp/s", server_pid=77, pane="%5")),
        ({"TMUX": "/a,b/c,77,0", "TMUX_PANE": "%5"}, Pane(socket="/a,b/c", server_pid=77, pane="%5")),
        ({"TMUX": "/tmp/s,77,0"}, None),
        ({"TMUX": "/tmp/s", "TMUX_PANE": "%5"}, None),
        ({"TMUX": "/tmp/s,x,0", "TMUX_PANE": "%5"}, None),
        ({"TMUX_PANE": "%5"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_process_knows_its_pane_by_its_environment(environment: dict[str, str], pane: Pane | None) -> None:
    assert pane_of(environment) == pane
