"""The process around the application: uvicorn, its signals, its exit code. Only `cli` imports this.

uvicorn's own handling of SIGTERM closes the listener at once and exits 143. Here the first signal starts the
drain and the listener stays open until it is over; a second one skips the wait; the exit code is 0 unless
something is wrong: 2 for a wrong setting or model, 1 for a fault after which a supervisor should restart us.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from service.api.wire import protocol_for
from service.app import Life, create_app
from service.errors import SettingsError
from service.logs import get_logger
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.async_engine import AsyncEngine

SWITCH_INTERVAL_S = 0.0005  # the engine thread gives way to the event loop ten times sooner than by default
KEEP_ALIVE_S = 65  # longer than a proxy's own, so that it is the one who closes


class Server(uvicorn.Server):
    """uvicorn with our signals.

    Args:
        config: uvicorn's.
        life: the application's life.
    """

    def __init__(self, config: uvicorn.Config, life: Life) -> None:
        super().__init__(config)
        self.exit_code = 0
        self.life = life
        self._num_signals = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the listener, say where, and watch the application."""
        self._loop = asyncio.get_running_loop()
        self._tasks.append(asyncio.create_task(self._watch()))
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            get_logger().info("listening", address=f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, hurry at the second. Runs between two bytecodes of the main thread."""
        self._num_signals += 1
        name = signal.Signals(sig).name
        self._loop.call_soon_threadsafe(self._hurry if self._num_signals > 1 else self._begin_drain, name)

    def _begin_drain(self, signal_name: str) -> None:
        num_running = len(self.life.state.exchanges)
        get_logger().info("draining", signal=signal_name, requests_in_flight=num_running)
        self._tasks.append(asyncio.create_task(self._drain()))

    def _hurry(self, signal_name: str) -> None:
        get_logger().warning("not waiting any longer", signal=signal_name)
        self.life.hurry()

    async def _drain(self) -> None:
        await self.life.drain()
        self.should_exit = True

    async def _watch(self) -> None:
        """End the process when the application cannot go on."""
        await self.life.failed.wait()
        failure = self.life.failure
        self.exit_code = 2 if isinstance(failure, SettingsError) else 1
        get_logger().error(str(failure) or type(failure).__name__)
        if isinstance(failure, Exception):
            await self.life.end_requests(failure)
        self.should_exit = True


def make_server(settings: Settings, engine: AsyncEngine | None = None) -> Server:
    """A server for these settings, not yet started.

    Args:
        settings: validated settings.
        engine: see `create_app`.
    """
    app = create_app(settings, engine)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol_for(settings.body_timeout_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )
    return Server(config, app.state.life)


def run_server(settings: Settings) -> int:
    """Serve until told to stop.

    Returns:
        The exit code of the process.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = make_server(settings)
    server.run()
    return server.exit_code
