"""The input of ``hook``: kept up to a limit, read on beyond it, and never waited for without an end."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest

from yolo_supervisor import hook


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def zeros() -> Iterator[int]:
    fd = os.open("/dev/zero", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_whole_object_is_taken_while_the_input_stays_open(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b'{"a": 1}\n')

    assert hook._payload(pipe[0], math.inf) == (b'{"a": 1}\n', False)


def test_the_input_before_a_silence_is_kept(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "SILENCE_MS", 1)
    os.write(pipe[1], b'{"half": ')

    assert hook._payload(pipe[0], math.inf) == (b'{"half": ', False)


def test_an_input_above_the_limit_is_cut_and_the_rest_is_to_be_discarded(zeros: int) -> None:
    assert hook._payload(zeros, math.inf) == (bytes(hook.PAYLOAD_LIMIT), True)


def test_an_endless_rest_is_discarded_up_to_its_limit(zeros: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read = [0]

    def counted(fd: int, pause_ms: float, until_s: float) -> bytes:
        read[0] += 2**20
        return bytes(2**20)

    monkeypatch.setattr(hook, "_part", counted)
    hook._discard(zeros, math.inf)

    assert read[0] == hook.DISCARD_LIMIT


def test_nothing_is_read_when_the_time_is_over(zeros: int) -> None:
    assert hook._payload(zeros, -math.inf) == (b"", False)


def test_a_closed_input_is_an_empty_payload(pipe: tuple[int, int]) -> None:
    closed = os.dup(pipe[0])
    os.close(closed)

    assert hook._payload(closed, math.inf) == (b"", False)
