"""Reads connections in small pieces: what nobody has asked for stays with the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# At a time, and of bodies that a connection may have brought before they are asked for.
READ_BYTES = 16 * 1024


class SmallReads(asyncio.BufferedProtocol):
    """One connection, read `READ_BYTES` at a time; a loop by itself reads 256 KB that nobody may want.

    Args:
        protocol: what takes the bytes, and all else.
        buffer: for what is read; one serves all connections of an event loop.
    """

    def __init__(self, protocol: asyncio.Protocol, buffer: memoryview) -> None:
        self._protocol, self._buffer = protocol, buffer
        self.connection_made = protocol.connection_made  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self._protocol.data_received(bytes(self._buffer[:nbytes]))


def in_small_reads(protocol: Callable[..., asyncio.Protocol]) -> Callable[..., SmallReads]:
    """A maker of connections for one event loop, see `SmallReads`."""
    buffer = memoryview(bytearray(READ_BYTES))
    return lambda **arguments: SmallReads(protocol(**arguments), buffer)
