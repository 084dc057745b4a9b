"""Countdowns before an agent is ended, and the messages to people at tmux."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.actions.agents import ShowMessage
from yolo_supervisor.formats import session_ends as file_format
from yolo_supervisor.formats.session_ends import Countdown, EndedAgent, SessionEnds
from yolo_supervisor.models import ProcessId, iso
from yolo_supervisor.watchers.session_ends import KEPT, KEPT_FOR, follow, messages

NOW = datetime(2026, 11, 22, 14, 5, tzinfo=UTC)
SOCKET = "/tmp/tmux-1000/default"


def counted(
    name: str, number: int = 1, due_s: float = 10.0, session: str | None = "work", ending: bool = False
) -> Countdown:
    return Countdown(
        agent=f"{name}@red", name=name, process=ProcessId(number, 1, "here"), socket=SOCKET, session=session,
        reason="its tmux session was left", due_s=due_s, ending=ending,
    )  # fmt: skip


def ended(name: str, clients: frozenset[int] = frozenset(), ago: timedelta = timedelta()) -> EndedAgent:
    return EndedAgent(
        agent=f"{name}@red", name=name, socket=SOCKET, session="work", reason="its tmux session was left",
        at=iso(NOW - ago), clients=clients,
    )  # fmt: skip


def after(before: SessionEnds, *countdowns: Countdown, dead: bool = True, **clients: dict[int, str]) -> SessionEnds:
    """The ends after a look; without ``there`` the server has not answered."""
    there = {SOCKET: clients["there"]} if clients else {}
    return follow(before, countdowns, there, lambda _: dead, NOW)


def shown(ends: SessionEnds, there: dict[int, str], now_s: float = 0.0) -> list[tuple[str, str]]:
    return [(message.client, message.reason) for message in messages(ends, {SOCKET: there}, now_s)]


# -- the record -------------------------------------------------------------------------------------------------------


def test_an_agent_that_is_not_counted_down_any_more_was_ended_or_spared() -> None:
    due, before = SessionEnds(countdowns=(counted("dev", ending=True),)), SessionEnds(countdowns=(counted("dev"),))

    assert after(due, there={}) == SessionEnds(ended=(ended("dev"),))
    assert after(due, there={}, dead=False) == SessionEnds(), "its person came back"
    assert after(due, counted("dev", ending=True), there={}) == due
    assert after(before, there={}) == SessionEnds(), "it has ended by itself"


def test_the_time_of_a_countdown_stands_until_the_supervisor_was_stopped() -> None:
    before = SessionEnds(countdowns=(counted("dev", due_s=10.0),))

    assert after(before, counted("dev", due_s=10.4)) == before
    assert after(before, counted("dev", due_s=70.0)).countdowns[0].due_s == 70.0


def test_a_person_who_came_at_the_last_moment_gets_the_message_too() -> None:
    ends = after(SessionEnds(), counted("dev", ending=True), there={7: "/dev/pts/7"})
    ends = after(ends, there={7: "/dev/pts/7", 8: "/dev/pts/8"})

    assert [client for client, _ in shown(ends, {7: "/dev/pts/7", 8: "/dev/pts/8"})] == ["/dev/pts/8"]


def test_the_pid_of_a_client_that_left_may_be_used_again() -> None:
    ends = SessionEnds(ended=(ended("dev", frozenset({7})),))

    assert after(ends) == ends, "its server has not answered"
    assert shown(after(ends, there={}), {7: "/dev/pts/7"}) != []


def test_ends_that_no_person_comes_for_are_dropped_after_three_days() -> None:
    old = SessionEnds(ended=(ended("old", ago=KEPT_FOR), ended("new", ago=KEPT_FOR - timedelta(seconds=1))))
    many = SessionEnds(ended=tuple(ended(f"dev-{n}") for n in range(2 * KEPT)))

    assert [end.name for end in after(old).ended] == ["new"]
    assert [end.name for end in after(many).ended] == [f"dev-{n}" for n in range(KEPT, 2 * KEPT)]


texts = st.text(max_size=20) | st.just("\udc80")
clients = st.frozensets(st.integers(1, 2**22), max_size=3)


@given(
    st.builds(
        SessionEnds,
        countdowns=st.lists(
            st.builds(
                Countdown, agent=texts, name=texts, process=st.builds(ProcessId, st.integers(1, 99), st.just(1), texts),
                socket=texts, session=st.none() | texts, reason=texts, due_s=st.floats(0, 1e9), clients=clients,
            ),
            max_size=3,
        ).map(tuple),
        ended=st.lists(
            st.builds(
                EndedAgent, agent=texts, name=texts, socket=texts, session=st.none() | texts, reason=texts,
                at=st.datetimes(datetime(2000, 1, 1)).map(iso), clients=clients,
            ),
            max_size=3,
        ).map(tuple),
    )
)  # fmt: skip
def test_the_file_holds_the_ends(ends: SessionEnds) -> None:
    assert file_format.load(file_format.dump(ends)) == ends


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"version": 1, "ended": 5}', b'{"version": 1, "ended": [{"agent": 1}]}', b"9" * 5000,
     b'{"version": 1, "countdowns": [{"agent": "a"}]}'],
)  # fmt: skip
def test_a_file_that_cannot_be_read_holds_none(data: bytes) -> None:
    assert file_format.load(data) == SessionEnds()


def test_an_end_at_a_time_that_is_none_is_not_read() -> None:
    dumped = file_format.dump(SessionEnds(ended=(ended("dev"),)))

    assert file_format.load(dumped.replace(iso(NOW).encode(), b"yesterday")) == SessionEnds()


# -- messages ---------------------------------------------------------------------------------------------------------


def test_all_clients_of_the_server_get_a_countdown() -> None:
    ends = SessionEnds(countdowns=(counted("dev", 1), counted("qa", 2)))

    text = "yolo-supervisor will end dev, qa in 7 s: session work was left. Attach to it to stop this"
    assert shown(ends, {7: "/dev/pts/7", 8: "/dev/pts/8"}, now_s=3.0) == [("/dev/pts/7", text), ("/dev/pts/8", text)]


def test_a_message_names_a_few_agents_and_counts_the_others() -> None:
    ends = SessionEnds(countdowns=tuple(counted(f"dev-{n}", n, session=None) for n in range(1, 6)))

    assert shown(ends, {7: "/dev/pts/7"}) == [
        ("/dev/pts/7", "yolo-supervisor will end dev-1, dev-2, dev-3 and 2 more in 10 s: the tmux session is gone")
    ]


def test_the_same_countdown_is_the_same_message_however_much_time_is_left() -> None:
    def message(now_s: float, *countdowns: Countdown) -> ShowMessage:
        (found,) = messages(SessionEnds(countdowns=countdowns), {SOCKET: {7: "/dev/pts/7"}}, now_s)
        return found

    begun = message(0.0, counted("dev", 1), counted("qa", 2))
    assert message(5.0, counted("dev", 1)).identity == begun.identity
    assert message(5.0, counted("dev", 1, session="desk")).identity != begun.identity


def test_a_person_who_comes_afterwards_is_shown_the_ended_agents() -> None:
    ends = SessionEnds(ended=(ended("dev", frozenset({7})), ended("qa", frozenset({7}))))

    assert shown(ends, {7: "/dev/pts/7"}) == []
    ((client, text),) = shown(ends, {7: "/dev/pts/7", 9: "/dev/pts/9"})
    assert client == "/dev/pts/9"
    assert text.startswith("yolo-supervisor has ended dev, qa (session work was left, ")
