"""Frames to the byte."""

from __future__ import annotations

import json

import pytest

from service.api.sse import frame


def test_a_frame_is_one_data_line_and_an_empty_one() -> None:
    assert frame({"a": 1}) == b'data: {"a":1}\n\n'


def test_a_native_frame_names_its_type() -> None:
    assert frame({"a": 1}, "token") == b'event: token\ndata: {"a":1}\n\n'


@pytest.mark.parametrize("text", ["\n", "\r\n", "\n\ndata: x", "\u2028", "\0", "计算机", "\U0001f600", '"'])
def test_no_text_breaks_out_of_its_frame(text: str) -> None:
    data = frame({"text": text}).decode()
    assert data.count("\n") == 2 and "\r" not in data
    assert json.loads(data.removeprefix("data: ")) == {"text": text}
