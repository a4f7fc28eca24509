"""Heads of requests that a proxy and the service could read differently are refused."""

from __future__ import annotations

import pytest

from service.api.head import MAX_HEADER_BYTES, check_head
from service.api.problems import HttpProblem

HOST = (b"host", b"x")


def refused_with(version: str, headers: list[tuple[bytes, bytes]]) -> tuple[str, str]:
    """Code and message; empty ones for a head that passes."""
    try:
        check_head(version, headers)
    except HttpProblem as refusal:
        return refusal.problem.code, refusal.problem.message
    return "", ""


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", [HOST]),
        ("1.0", []),
        ("1.1", [(b"host", b"")]),
        ("1.1", [(b"host", b"text_gen.my-host.example:8000")]),
        ("1.1", [(b"host", b"[fe80::1%25eth0]:8000")]),
        ("1.1", [HOST, (b"authorization", b"Bearer a"), (b"transfer-encoding", b"Chunked ")]),
        ("1.1", [HOST, (b"x-a", b"1"), (b"x-a", b"2")]),
    ],
)
def test_a_plain_head_passes(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert refused_with(version, headers) == ("", "")


@pytest.mark.parametrize(
    ("version", "headers", "said"),
    [
        ("1.1", [], "no Host"),
        ("1.1", [HOST, HOST], "more than one Host"),
        ("1.0", [HOST, (b"host", b"y")], "more than one Host"),
        ("1.1", [HOST, (b"authorization", b"a"), (b"authorization", b"b")], "more than one Authorization"),
        ("1.1", [(b"host", b"a, b")], "Host header is not"),
        ("1.1", [(b"host", b"a/b")], "Host header is not"),
        ("1.1", [(b"host", b"[::1")], "Host header is not"),
        ("1.1", [(b"host", b"::1")], "Host header is not"),
        ("1.1", [(b"host", b"a:b:1")], "Host header is not"),
        ("1.1", [(b"host", b"a:port")], "Host header is not"),
        ("1.1", [(b"host", b"a:123456")], "Host header is not"),
        ("1.0", [HOST, (b"transfer-encoding", b"chunked")], "HTTP/1.0 has no Transfer-Encoding"),
        ("1.1", [(b"host", b"user@a")], "Host header is not"),
        ("2.0", [HOST], "HTTP/1.1"),
        ("0.9", [], "HTTP/1.1"),
        ("1.2", [HOST], "HTTP/1.1"),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")], "chunked"),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip"), (b"transfer-encoding", b"chunked")], "chunked"),
        ("1.1", [HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], "chunked"),
        ("1.1", [HOST, (b"transfer-encoding", b"identity")], "chunked"),
    ],
)
def test_an_ambiguous_head_is_refused(version: str, headers: list[tuple[bytes, bytes]], said: str) -> None:
    code, message = refused_with(version, headers)
    assert code == "bad_request" and said in message


def test_a_head_may_be_as_large_as_the_limit() -> None:
    rest = MAX_HEADER_BYTES - len(b"hostx") - 4 - len(b"x-a") - 4
    codes = [refused_with("1.1", [HOST, (b"x-a", b"a" * size)])[0] for size in (rest, rest + 1)]
    assert codes == ["", "headers_too_large"]
