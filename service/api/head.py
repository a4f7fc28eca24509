"""What the head of a request must be, beyond what the parser checks: one meaning, whoever reads it.

A proxy before the service may read an ambiguous head differently; it is refused. `exchange` calls this first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.api.problems import HttpProblem

MAX_HEADER_BYTES = 8 * 1024
HEALTH_PATHS = ("/livez", "/readyz", "/health", "/ping")  # answered without a key, whatever the load
_ONCE = (b"host", b"authorization")
_HOST = re.compile(rb"(?:\[[A-Za-z0-9.:_~%-]+\]|[A-Za-z0-9._~%-]*)(?::[0-9]{0,5})?")  # and its port


def check_head(http_version: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse an ambiguous head.

    Args:
        http_version: as the client wrote it, "1.1" say.
        headers: names in lower case, values.

    Raises:
        HttpProblem: 400, another version of HTTP, not one well-formed host, two keys, an encoding besides
            chunks or in HTTP/1.0; 431, too many bytes.
    """
    headers = list(headers)
    if sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEADER_BYTES:
        raise HttpProblem("headers_too_large", f"the headers are larger than {MAX_HEADER_BYTES} bytes")
    names = [name for name, _ in headers]
    if http_version not in ("1.0", "1.1"):
        raise HttpProblem("bad_request", "this is not an HTTP/1.1 request")
    if http_version == "1.1" and b"host" not in names:
        raise HttpProblem("bad_request", "the request has no Host header")
    for name in _ONCE:
        if names.count(name) > 1:
            raise HttpProblem("bad_request", f"the request has more than one {name.decode().title()} header")
    if any(name == b"host" and not _HOST.fullmatch(value.strip()) for name, value in headers):
        raise HttpProblem("bad_request", "the Host header is not a host with or without a port")
    # HTTP/1.0 knows none, so where such a body ends is unsure
    if http_version == "1.0" and b"transfer-encoding" in names:
        raise HttpProblem("bad_request", "HTTP/1.0 has no Transfer-Encoding")
    encodings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if encodings not in ([], [b"chunked"]):
        raise HttpProblem("bad_request", "the only Transfer-Encoding that is understood is chunked, once")
