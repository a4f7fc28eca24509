"""Whom a request comes from: the last address that is not a trusted proxy's, and nothing a client made up."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from service.api.client_address import client_address

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", [b"198.51.100.7"], "192.0.2.1"),  # not from a trusted proxy
        ("10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"1.1.1.1, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),  # the first one is made up
        ("10.0.0.1", [b"1.1.1.1", b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b"198.51.100.7:5123"], "198.51.100.7"),
        ("10.0.0.1", [b"nonsense"], ""),
        ("10.0.0.1", [b""], ""),
        ("10.0.0.1", [b"\xff"], ""),
        ("fd00::1", [b"[2001:db8::17]:443"], "2001:db8::/64"),
        ("2001:db8::1", [], "2001:db8::/64"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("", [b"198.51.100.7"], ""),
    ],
)
def test_the_address_is_what_can_be_believed(peer: str, forwarded: list[bytes], address: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == address


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert client_address("10.0.0.1", [b"198.51.100.7"], ()) == "10.0.0.1"
