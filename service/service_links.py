"""Kubernetes' service links: variables that tell every container of a namespace where its Services are.

Those of a Service whose name begins with `textgen` look like settings of ours. Name and value together show
what they are. `settings` ignores them and `server` says so.

Source: Kubernetes, "Service: Discovering services, environment variables".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_ADDRESS, _NUMBER = r"[0-9a-fA-F.:]+", r"[0-9]+"
_SHAPES = tuple(
    (re.compile(rf"TEXTGEN(_\w+)?_{name}"), re.compile(value))
    for name, value in (
        ("SERVICE_HOST", _ADDRESS),
        (r"SERVICE_PORT(_\w+)?", _NUMBER),
        (r"PORT(_\d+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://\S+:[0-9]+"),
        (r"PORT_\d+_(TCP|UDP|SCTP)_PROTO", "tcp|udp|sctp"),
        (r"PORT_\d+_(TCP|UDP|SCTP)_PORT", _NUMBER),
        (r"PORT_\d+_(TCP|UDP|SCTP)_ADDR", _ADDRESS),
    )
)


def service_links(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the variables that are service links of Services called `textgen` or `textgen-…`."""
    return tuple(
        sorted(
            name
            for name, value in environment.items()
            if any(of_name.fullmatch(name) and of_value.fullmatch(value) for of_name, of_value in _SHAPES)
        )
    )
