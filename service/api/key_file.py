"""The key file, read again while the service runs: when it changes, and on SIGHUP."""

from __future__ import annotations

import asyncio
from pathlib import Path

from service.api.state import ServiceState
from service.logs import get_logger

POLL_S = 5.0


async def watch_keys(state: ServiceState) -> None:
    """Read the key file again whenever it has changed; ends only without such a file."""
    file = state.settings.api_keys_file
    seen: tuple[int, ...] | None = None  # the first look reads what changed since the settings were read
    while file is not None:
        now = await asyncio.to_thread(_version, file)
        if now != seen:
            seen = now
            await reload_keys(state)
        await asyncio.sleep(POLL_S)


async def reload_keys(state: ServiceState) -> None:
    """Take the keys that the file holds now; a file that cannot be used leaves all as it was."""
    try:
        keys = await asyncio.to_thread(state.settings.keys)
    except ValueError as error:
        get_logger().error(f"the keys stay as they were: {error}")
        return
    if state.keyring.replace(keys):
        get_logger().info("keys were read again", num_keys=state.keyring.num_keys)


def _version(file: Path) -> tuple[int, ...]:
    """Changes with the file's content, also when another file takes its place; () without a file."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
