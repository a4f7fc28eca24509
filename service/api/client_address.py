"""Where a request comes from: what tells clients apart that send no key.

The address is used for fair turns only; it is neither logged nor counted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_IPV6_HOST = 64  # bits of the network that one site has for itself: it may use any address in it


def client_address(peer: str, forwarded: Iterable[bytes], trusted: Sequence[Network]) -> str:
    """The address of a client, as far as it can be believed.

    Args:
        peer: the other end of the connection; "" where it has no address.
        forwarded: values of the X-Forwarded-For headers, in order.
        trusted: proxies that say the truth about who is before them.

    Returns:
        The last address that is no trusted proxy's: an IPv4 address, or the /64 network of an IPv6 one; "" if
        there is none.
    """
    hops = [hop.strip() for value in forwarded for hop in value.decode("latin-1").split(",")]
    address = _parsed(peer)
    while address is not None and hops and any(address in network for network in trusted):
        address = _parsed(hops.pop())
    if address is None:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_HOST), strict=False))
    return str(address)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, without the port that some proxies add; None if it is none."""
    text = text.removeprefix("[").partition("]")[0] if text.startswith("[") else text
    host = text.partition(":")[0] if text.count(":") == 1 else text
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
