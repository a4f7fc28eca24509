"""What the routes of one application share: settings, metrics, keys, the engine and the task runner.

`service.life` fills it while the model loads. Routes find it with `service_of`; nothing here is global.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from model_store.task import Task
from service.api.bodies import BodyRoom
from service.api.security import Keyring
from service.engine.async_engine import AsyncEngine
from service.errors import Draining, EngineDead, NotReady
from service.metrics import Metrics
from service.settings import Settings
from service.tasks.run import TaskRunner
from service.tracing import NoTracing, Tracing, make_tracing

_BODIES = 16  # of the largest size, held at once


@dataclass(frozen=True, slots=True)
class Served:
    """The model that is loaded, and all that works on it."""

    name: str
    version: str
    tasks: Mapping[str, Task]
    runner: TaskRunner
    engine: AsyncEngine
    created: int  # seconds since 1970, for the list of models
    facts: Mapping[str, Any]  # shown by /info


@dataclass(eq=False, slots=True)
class ServiceState:
    """See the module's docstring.

    Args:
        settings: what the service was started with.
    """

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    served: Served | None = None  # None while loading
    is_draining: bool = False
    in_flight: set[Callable[[Exception], None]] = field(default_factory=set)  # each ends one request
    ignored_fields: set[str] = field(default_factory=set)  # those the log has told of
    keyring: Keyring = field(init=False)
    body_room: BodyRoom = field(init=False)
    tracing: Tracing | NoTracing = field(init=False)

    def __post_init__(self) -> None:
        """Read the keys once, and make room for bodies."""
        self.keyring = Keyring(self.settings.keys(), self.settings.key_concurrency)
        self.metrics.tenants = self.keyring.names
        self.body_room = BodyRoom(_BODIES * self.settings.max_body_bytes)
        self.tracing = make_tracing(self.settings.otlp_endpoint)

    def require_served(self) -> Served:
        """The loaded model, if new work can be taken.

        Raises:
            Draining: the process was told to stop.
            NotReady: the model is still loading.
            EngineDead: the engine is gone, the process will follow.
        """
        if self.is_draining:
            raise Draining
        if self.served is None:
            raise NotReady
        if not self.served.engine.is_alive:
            raise EngineDead
        return self.served

    def fail_all(self, error: Exception) -> None:
        """End every request in flight; streams get `error` as their last frame."""
        for fail in tuple(self.in_flight):
            fail(error)


def service_of(request: Request) -> ServiceState:
    """The state of the application that serves this request."""
    state: ServiceState = request.app.state.service
    return state
