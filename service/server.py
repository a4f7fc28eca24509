"""The process around the application: uvicorn, its signals, its exit code. Only `cli` imports this.

uvicorn's own handling of SIGTERM closes the listener at once and exits 143. Here the first signal starts the
drain and the listener stays open until it is over; a second one skips the wait; the exit code is 0 unless
something is wrong: 2 for a wrong setting or model, 1 for a fault after which a supervisor should restart us.

The listener opens before torch and the application are imported: who connects meanwhile waits a moment, and
an address that cannot be had stops the start at once.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import resource
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from service.engine.memory import is_out_of_memory, out_of_memory_line
from service.errors import SettingsError
from service.logs import get_logger
from service.settings import Settings
from service.start_up import uncollected

if TYPE_CHECKING:
    from service.engine_setup import Opening
    from service.life import Life

SWITCH_INTERVAL_S = 0.0005  # the engine thread gives way to the event loop ten times sooner than by default
END_S = 20  # for the end after a failure; it takes up to eight
KEEP_ALIVE_S = 65  # longer than a proxy's own, so that it is the one who closes
BACKLOG = 2048
MAX_CONNECTIONS = 2048
OWN_FILES = 256  # of the limit of open files: the process's own, and connections that are about to be refused
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # no IPv6 here, say: `localhost` has another address
_NO_ADDRESS = "TEXTGEN_HOST is no address of this machine; legal is one that it has, or 0.0.0.0: all"
_REFUSALS = {
    errno.EADDRINUSE: "TEXTGEN_PORT: port {port} is in use; stop what listens there, or choose another one",
    errno.EACCES: "TEXTGEN_PORT: port {port} takes privileges; without them legal is 1024 … 65535",
    **dict.fromkeys(_ABSENT, _NO_ADDRESS),
}


class _LeftBehind(ThreadPoolExecutor):
    """Worker threads that the end of the loop does not wait for: a model that loads cannot be interrupted."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let idle threads end; never wait."""
        super().shutdown(wait=False, cancel_futures=True)


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

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop, on these listeners or on new ones for the configured address."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(_LeftBehind())
        listeners = sockets or open_listeners(self.config.host, self.config.port)
        host, port = listeners[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        get_logger().info("listening", address=f"http://{shown}:{port}")
        await super().serve(listeners)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, say how to try it, and watch the application."""
        self._tasks.append(asyncio.create_task(self._watch()))
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and not os.isatty(0):  # at a terminal it says that the terminal is gone
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._tasks.append(asyncio.create_task(self._invite(host, port)))
            if links := self.life.state.settings.ignored_variables:
                names = ", ".join(links)
                get_logger().info("these variables are Kubernetes' service links, no settings", names=names)
            hosts = [listener.getsockname()[0] for server in self.servers for listener in server.sockets]
            is_local = all(ipaddress.ip_address(host).is_loopback for host in hosts)
            if not is_local and not self.life.state.settings.keys():
                get_logger().warning("no API keys are set: whoever reaches this address may use the service")

    async def _invite(self, host: str, port: int) -> None:
        """Say how to try the service, once it can be tried."""
        await self.life.settled()
        if self.life.failure is not None:
            return
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        url = f"http://{shown}:{port}"
        key = " -H 'Authorization: Bearer KEY'" if self.life.state.settings.keys() else ""
        curl = f"curl -N {url}/generate -H 'Content-Type: application/json'{key}"
        body = '{"prompt": "Once upon a time", "stream": true}'
        get_logger().info(f"open {url} in a browser, or paste: {curl} -d '{body}'")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, hurry at the second. Runs between two bytecodes of the main thread."""
        self._num_signals += 1
        name = signal.Signals(sig).name
        self._loop.call_soon_threadsafe(self._hurry if self._num_signals > 1 else self._begin_drain, name)

    def _begin_drain(self, signal_name: str) -> None:
        num_running = len(self.life.state.in_flight)
        get_logger().info("draining", signal=signal_name, requests_in_flight=num_running)

        async def drain() -> None:
            await self.life.drain()
            self.should_exit = True

        self._tasks.append(asyncio.create_task(drain()))

    def _hurry(self, signal_name: str) -> None:
        get_logger().warning("not waiting any longer", signal=signal_name)
        self.life.hurry()

    def _reload(self) -> None:
        from service.api.key_file import reload_keys

        get_logger().info("reading the keys again", signal="SIGHUP")
        self._tasks.append(asyncio.create_task(reload_keys(self.life.state)))

    async def _watch(self) -> None:
        """End the process when the application cannot go on."""
        await self.life.failed.wait()
        failure = self.life.failure
        self.exit_code = 2 if isinstance(failure, SettingsError) else 1
        get_logger().error(_in_words(failure))
        _end_within(END_S, self.exit_code)
        if isinstance(failure, Exception):
            await self.life.end_requests(failure)
        self.should_exit = True


def _in_words(failure: BaseException | None) -> str:
    """One line for the log."""
    if failure is not None and is_out_of_memory(failure):
        return out_of_memory_line()
    return str(failure) or type(failure).__name__


def _end_within(seconds: int, code: int) -> None:
    """End this process with a code if it has not ended by then, whatever it waits for.

    An alarm takes neither a thread nor memory, which may be what there is none of. In a thread, as tests run
    servers, there are no signals.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, lambda number, frame: os._exit(code))
        signal.alarm(seconds)


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host.

    Args:
        host: a name or an address.
        port: 0 takes any free one, the same for all addresses.

    Raises:
        SettingsError: one line that names TEXTGEN_HOST or TEXTGEN_PORT and says what to do.
    """
    listeners: list[socket.socket] = []
    refusal = OSError()
    for family, address in _addresses(host, port):
        here = (address[0], listeners[0].getsockname()[1] if listeners else port, *address[2:])
        try:
            listeners.append(socket.create_server(here, family=family, backlog=BACKLOG))
        except OSError as error:
            refusal = error
            if error.errno not in _ABSENT:
                break
    if listeners and refusal.errno in (None, *_ABSENT):
        return listeners
    for listener in listeners:
        listener.close()
    other = f"TEXTGEN_HOST, TEXTGEN_PORT: listening there fails: {refusal.strerror}"
    raise SettingsError(_REFUSALS.get(refusal.errno or 0, other).format(port=port)) from refusal


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """What a host name stands for, each address once."""
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:  # ValueError: no name at all, as "a..b"
        raise SettingsError(
            "TEXTGEN_HOST cannot be resolved; legal is a host name or address of this machine"
        ) from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in resolved))


def make_server(settings: Settings, opening: Opening | None = None) -> Server:
    """A server for these settings, not yet started.

    Args:
        settings: validated settings.
        opening: see `create_app`.
    """
    # The web framework takes most of a second: see above.
    from service.api.protocol import protocol_for
    from service.api.small_reads import in_small_reads
    from service.app import create_app

    app = create_app(settings, opening)
    protocol = protocol_for(
        settings.body_timeout_s,
        settings.max_connections or max_connections(),
        app.state.service.metrics.connection_refused,
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=in_small_reads(protocol),  # type: ignore[arg-type]  # makes one
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )
    return Server(config, app.state.life)


def max_connections() -> int:
    """How many connections suit this process: fewer where it may not open so many files."""
    num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    own_limit = max(num_files - OWN_FILES, 1) if num_files != resource.RLIM_INFINITY else MAX_CONNECTIONS
    return min(own_limit, MAX_CONNECTIONS)


def run_server(settings: Settings) -> int:
    """Serve until told to stop.

    Returns:
        The exit code of the process.

    Raises:
        SettingsError: nobody can listen on the address.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    listeners = open_listeners(settings.host, settings.port)
    with uncollected():
        from service.engine_setup import Opening

        opening = Opening(settings)
        opening.begin()  # first: its engine loads, mostly in native code, while the application is imported
        server = make_server(settings, opening)
    server.run(listeners)
    return server.exit_code
