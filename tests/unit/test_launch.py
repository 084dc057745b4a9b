"""How agents were started, and the command lines that start them again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.formats.launch import Launch, dump_launch, load_launch
from yolo_supervisor.formats.launch_fields import ENVIRONMENT
from yolo_supervisor.formats.start import Start, dump_start, load_start

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=()), min_size=1, max_size=40)
ARGUMENTS = st.lists(TEXTS | st.just(""), max_size=8).map(tuple)
PATHS = TEXTS.map("/{}".format)
SESSIONS = st.from_regex(r"\A[0-9A-Za-z][0-9A-Za-z_-]{0,40}\Z")
VARIABLES = st.dictionaries(st.sampled_from(sorted(ENVIRONMENT)), TEXTS | st.just(""))
NAMES = st.lists(st.sampled_from(sorted(ENVIRONMENT)), max_size=5).map(tuple)

LAUNCHES = st.builds(
    Launch, agent=TEXTS, name=TEXTS, session=st.none() | SESSIONS, argv=ARGUMENTS, folder=PATHS, environment=VARIABLES,
    absent=NAMES, claude_dir=st.none() | PATHS, mode=st.none() | TEXTS, tmux_session=st.none() | TEXTS,
    window=st.none() | TEXTS, headless=st.booleans(),
)  # fmt: skip
STARTS = st.builds(
    Start, argv=st.tuples(TEXTS, ARGUMENTS).map(lambda t: (t[0], *t[1])), folder=PATHS, environment=VARIABLES,
    absent=NAMES, session=SESSIONS, agent=TEXTS, team=st.none() | TEXTS, homes=st.lists(PATHS, max_size=3).map(tuple),
    lock=PATHS, pane=st.none() | TEXTS,
)  # fmt: skip


@given(LAUNCHES)
def test_a_launch_is_read_as_it_was_written(launch: Launch) -> None:
    assert load_launch(dump_launch(launch)) == launch


@given(STARTS)
def test_a_start_is_read_as_it_was_written(start: Start) -> None:
    assert load_start(dump_start(start)) == start


@given(LAUNCHES, st.data())
def test_a_damaged_launch_is_unreadable_or_another_launch(launch: Launch, data: st.DataObject) -> None:
    whole = dump_launch(launch)
    at = data.draw(st.integers(0, len(whole) - 2))  # the last byte is a line's end
    assert load_launch(whole[:at]) is None
    load_launch(whole[:at] + data.draw(st.binary(max_size=3)) + whole[at:])
