"""Ray Serve: more replicas than one process, on one machine or many. Needs the extra `scale`.

    textgen scale --replicas 1-4 --cpus 2                        with the environment it wants, or
    serve run service.scale:app num_cpus=2 max_replicas=4        as Ray's users do

A replica is the whole service, as `create_app` makes it; Serve brings the requests, starts and ends replicas,
and watches them. Nothing distributed is of our own making: no router, no replication, no health protocol.
Settings are the `TEXTGEN_*` variables of whoever runs this; the address is Serve's. See docs/scaling.md.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve.config import AutoscalingContext
from ray.serve.metrics import Gauge
from starlette.types import ASGIApp

from service.app import create_app
from service.errors import EngineDead, SettingsError
from service.life import Life
from service.logs import configure_logs, get_logger
from service.settings import Settings, load_settings
from service.settings_text import PREFIX

METRICS_PERIOD_S = 5.0
SEQUENCES = "sequences"  # that run and wait: what a replica reports to the autoscaler
# Share of a full batch from which on one more replica pays: splitting a batch costs more than it gains.
FULL = 0.75
# Requests that Serve lets through beyond those that our own queue holds, so that it is we who refuse them,
# with our body and a computed Retry-After.
ROOM_FOR_REFUSALS = 1024


class ScaleArgs(BaseModel):
    """What `serve run service.scale:app key=value` and `args` in a Serve config take."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, gt=0)  # of each replica; compute threads keep to it
    num_gpus: float = Field(0.0, ge=0)
    # Replicas beyond the number while a new version starts, rounded up: old ones serve until new ones are
    # ready. 0 where there is no room for one more: then old ones stop first.
    max_surge_percent: int = Field(1, ge=0, le=100)
    # Seconds that one replica fewer must have sufficed before one goes; it takes its prefix cache along.
    downscale_delay_s: float = Field(300.0, ge=0)


def parse_args(given: Mapping[str, Any]) -> ScaleArgs:
    """Check arguments; texts are read as numbers.

    Raises:
        SettingsError: one line for each that is wrong.
    """
    try:
        args = ScaleArgs.model_validate(given)
    except ValidationError as error:
        wrong = error.errors(include_input=False)
        raise SettingsError("\n".join(f"{item['loc'][0]}: {item['msg']}" for item in wrong)) from None
    if args.min_replicas > args.max_replicas:
        raise SettingsError(f"min_replicas: legal is 1 … {args.max_replicas}, the value of max_replicas")
    return args


class Textgen:
    """One replica."""

    life: Life

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application; Serve calls this once, and runs its lifespan."""
        resources = ray.get_runtime_context().get_assigned_resources()
        threads = max(1, int(resources.get("CPU", 1)))
        settings = load_settings({} if f"{PREFIX}THREADS" in os.environ else {"threads": threads})
        configure_logs(settings.log_format, settings.log_level)
        application = create_app(settings)
        self.life = application.state.life
        self._tasks = [asyncio.ensure_future(self._watch()), asyncio.ensure_future(self._export())]
        return application

    async def check_health(self) -> None:
        """Wait until the model is loaded, the first time; then raise unless new work would be taken."""
        await self.life.settled()
        if self.life.failure is not None:
            raise self.life.failure
        if not self.life.state.require_served().engine.is_ready:
            raise EngineDead("the engine takes no work")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Sequences that run and wait here; one request may be a hundred."""
        running, waiting, _ = self.life.state.metrics.levels()
        return {SEQUENCES: float(running + waiting)}

    async def _watch(self) -> None:
        """End the process when its engine is dead, so that Serve starts another at once."""
        await self.life.failed.wait()
        failure = self.life.failure
        get_logger().error(str(failure) or type(failure).__name__)
        if isinstance(failure, EngineDead):
            await self.life.end_requests(failure)
            os._exit(1)

    async def _export(self) -> None:
        """Show our metrics at Ray's exporter, too, where Ray labels them with the replica."""
        gauges: dict[str, Gauge] = {}
        while True:
            for family in self.life.state.metrics.collect():
                for sample in family.samples:
                    if sample.name not in gauges:
                        labels = tuple(sample.labels)
                        gauges[sample.name] = Gauge(sample.name, family.documentation, labels)
                    gauges[sample.name].set(sample.value, tags=sample.labels)
            await asyncio.sleep(METRICS_PERIOD_S)


class BySequences:
    """As many replicas as the sequences of all would fill; Serve keeps to its bounds and delays.

    Args:
        target: sequences for one replica.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number wished for now."""
        reported = (context.aggregated_metrics or {}).get(SEQUENCES, {})
        if not reported:
            return context.target_num_replicas, {}
        return max(1, math.ceil(sum(reported.values()) / self._target)), {}


def environment(settings: Settings) -> dict[str, str]:
    """What the environment of `ray start` and `serve run` should hold; each is Ray's own variable."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",  # its Python proxy takes three times the CPU
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_worker_niceness": "0",  # replicas run at nice 15 otherwise
        # How long streams may go on when HAProxy takes up a change; longer than any request.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(math.ceil(settings.request_timeout_s) + 60),
    }


def serve_config(args: ScaleArgs, host: str, port: int) -> dict[str, Any]:
    """A Serve config as `serve run` and `serve deploy` take it, with this process's `TEXTGEN_*` variables.

    Args:
        args: of `app`.
        host: where Serve's front and every replica listen; 0.0.0.0 where there are several nodes, since a
            replica cannot listen on another node's address. Left out, it is every address in HAProxy mode.
        port: the front's.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": "textgen",
                "route_prefix": "/",
                "import_path": "service.scale:app",
                "args": args.model_dump(),
                "runtime_env": {"env_vars": _variables()},
            }
        ],
    }


def _variables() -> dict[str, str]:
    """Our settings in this process's environment.

    Raises:
        SettingsError: they hold keys, which Ray's pages would show.
    """
    if os.environ.get(f"{PREFIX}API_KEYS"):
        raise SettingsError(f"{PREFIX}API_KEYS would be shown by Ray's pages; use {PREFIX}API_KEYS_FILE")
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIX)}


def app(given: Mapping[str, Any]) -> serve.Application:
    """The Serve application.

    Args:
        given: see `ScaleArgs`.

    Raises:
        SettingsError: an argument or a setting is wrong, or a variable holds keys.
    """
    args, settings = parse_args(given), load_settings()
    ingress = serve.deployment(serve.ingress()(Textgen))
    return ingress.options(
        name="Textgen",
        ray_actor_options={
            "num_cpus": args.num_cpus,
            "num_gpus": args.num_gpus,
            "runtime_env": {"env_vars": _variables()},
        },
        max_ongoing_requests=_max_running(settings, args) + settings.max_waiting + ROOM_FOR_REFUSALS,
        graceful_shutdown_timeout_s=settings.request_timeout_s + 10,
        health_check_period_s=5,
        health_check_timeout_s=30,
        max_surge_percent=args.max_surge_percent,
        max_constructor_retry_count=3,  # a wrong setting or model stays wrong
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "upscale_delay_s": 10,
            "downscale_delay_s": args.downscale_delay_s,
            "policy": {
                "policy_function": "service.scale:BySequences",
                "policy_kwargs": {"target": FULL * _max_running(settings, args)},
            },
        },
    ).bind()


def _max_running(settings: Settings, args: ScaleArgs) -> int:
    """Sequences in one batch; where nothing is set, the engine decides by the device as here."""
    return settings.max_running or (256 if args.num_gpus else 64)
