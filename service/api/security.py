"""Who asks: API keys and how many requests each may have in flight. Request ids are cleaned here too.

Keys are kept and compared as digests, every key each time, so that neither time nor a core dump tells one.
No HTTP framework here; `exchange` calls it before a body is read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from service.api.problems import HttpProblem

_REQUEST_ID = re.compile(rb"[\x20-\x7e]{1,128}")


class Keyring:
    """The API keys; none means that everybody may ask.

    Args:
        keys: the keys as clients send them, each with the name of its tenant or "".
        concurrency: maximum requests in flight for one key; 0 is no limit.
    """

    def __init__(self, keys: Mapping[str, str], concurrency: int = 0) -> None:
        self._digests: list[bytes] = []
        self.names: dict[str, str] = {}  # of tenants, by what `key_id` returns; of keys that are gone, too
        self.replace(keys)
        self._concurrency = concurrency
        self._in_flight: Counter[str] = Counter()

    def replace(self, keys: Mapping[str, str]) -> bool:
        """Take these keys from now on; requests of others go on to their end. Returns whether any differs."""
        before = self._digests, dict(self.names)
        self._digests = [_digest(key.encode()) for key in keys]
        self.names |= {_public(_digest(key.encode())): name for key, name in keys.items()}
        return before != (self._digests, self.names)

    @property
    def num_keys(self) -> int:
        """How many keys there are."""
        return len(self._digests)

    def key_id(self, authorization: bytes) -> str:
        """Check a key.

        Args:
            authorization: value of the Authorization header, b"" if there is none.

        Returns:
            What stands for the key and says nothing about it, "" when access is open.

        Raises:
            HttpProblem: 401, this is none of the keys.
        """
        if not self._digests:
            return ""
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise HttpProblem("unauthorized", "send a valid API key as `Authorization: Bearer <key>`")
        return _public(given)

    @contextmanager
    def place(self, key_id: str) -> Iterator[None]:
        """Hold a place among the key's requests. Raises HttpProblem (429) when it has too many in flight."""
        if self._concurrency and key_id and self._in_flight[key_id] >= self._concurrency:
            message = f"this key has {self._concurrency} requests in flight, as many as it may have"
            raise HttpProblem("queue_full", message, retry_after_s=1.0)
        self._in_flight[key_id] += 1
        try:
            yield
        finally:
            self._in_flight[key_id] -= 1
            if not self._in_flight[key_id]:
                del self._in_flight[key_id]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _public(digest: bytes) -> str:
    """What stands for a key in logs and in the engine: it leads back neither to the key nor to its digest."""
    return hashlib.sha256(b"tenant:" + digest).hexdigest()[:16]


def request_id_from(header: bytes | None) -> str:
    """The client's request id if it is 1 to 128 printable ASCII characters, else a new one."""
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header.decode("ascii")
    return secrets.token_hex(16)
