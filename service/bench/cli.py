"""The commands `textgen bench URL` and `textgen bench chaos`: options in; table, verdicts and JSON out.

Importing it is quick; what measures is imported when a command runs: `measure` and the package `chaos`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from service.bench.summary import Summary


class _RunByDefault(TyperGroup):
    """`textgen bench URL` is `textgen bench run URL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command's name before what is no command's."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "--install-completion"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Measure a server (`textgen bench URL`), or storm one it starts itself (`textgen bench chaos`).",
)

Bound = Annotated[float | None, typer.Option(help="Goodput: maximum milliseconds of this", min=0)]


@app.command()
def run(
    url: Annotated[str, typer.Argument(help="A server, its /v1/completions, or a /generate of this service")],
    clients: Annotated[str, typer.Option(help="Closed loop: so many clients, level by level")] = "1,8,32",
    rate: Annotated[
        str, typer.Option(help="Open loop instead: requests per second at random moments, as 1,2,4")
    ] = "",
    mix: Annotated[
        str, typer.Option(help="WORDSxTOKENS@WEIGHT of prompts and answers, as 64x64@9,700x16@1")
    ] = "64x64",
    prompts: Annotated[
        Path | None,
        typer.Option(help="Cut prompts out of a text, or take a .jsonl's", exists=True, dir_okay=False),
    ] = None,
    shared_words: Annotated[int, typer.Option(help="All prompts begin with so many same words", min=0)] = 0,
    requests: Annotated[int, typer.Option(help="Requests a level; 0: five for each client", min=0)] = 0,
    duration: Annotated[float, typer.Option(help="Maximum seconds per level", min=0.1)] = 60.0,
    timeout: Annotated[float, typer.Option(help="Maximum seconds per request", min=0.1)] = 300.0,
    model: Annotated[str, typer.Option(help="OpenAI's model field; empty: the server's first model")] = "",
    api_key: Annotated[str, typer.Option(help="Bearer token", envvar="OPENAI_API_KEY")] = "",
    extra: Annotated[str, typer.Option(help="More fields of every body, as JSON")] = "{}",
    stream: Annotated[bool, typer.Option(help="Answers token by token")] = True,
    ignore_eos: Annotated[bool, typer.Option(help="Ask for exactly the tokens of the mix")] = True,
    slo_ttft_ms: Bound = None,
    slo_tpot_ms: Bound = None,
    slo_e2e_ms: Bound = None,
    seed: Annotated[int, typer.Option(help="Of the prompts and the moments")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Save throughput and latency as a picture")] = None,
) -> None:
    """Measure output tokens/s, TTFT, ITL, E2E, goodput, errors, the server's own view. JSON comes last."""
    import httpx

    from service.bench.dialect import Dialect, dialect_of
    from service.bench.measure import Plan, measure, run_async
    from service.bench.prompts import parse_mix
    from service.bench.summary import Objective

    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("--plot needs matplotlib: pip install matplotlib")
    target, is_native = dialect_of(url)
    try:
        plan = Plan(
            dialect=Dialect(target, is_native, model, stream, ignore_eos, _fields(extra)),
            shapes=parse_mix(mix),
            prompts=prompts,
            shared_words=shared_words,
            seed=seed,
            clients=[] if rate else [int(number) for number in _numbers("clients", clients)],
            rates=_numbers("rate", rate),
            requests=requests,
            duration_s=duration,
            timeout_s=timeout,
            objective=Objective(slo_ttft_ms, slo_tpot_ms, slo_e2e_ms),
            api_key=api_key,
        )
        summaries = run_async(measure(plan))
    except (ValueError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise typer.BadParameter(str(error)) from error
    except httpx.HTTPError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    _show(summaries, target, mix, plot)


def _show(summaries: list[Summary], target: str, mix: str, plot: Path | None) -> None:
    from service.bench.report import NOTE, result_table, save_plot

    typer.echo(result_table(summaries))
    typer.echo(NOTE)
    if plot is not None:
        save_plot([s for s in summaries if s.kind == "all"], plot)
        typer.echo(f"picture: {plot}")
    typer.echo(json.dumps({"url": target, "mix": mix, "results": [s.as_dict() for s in summaries]}))


def _numbers(name: str, text: str) -> list[float]:
    """Read `1,8,32`."""
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0.0]
    if any(number <= 0 for number in numbers):
        raise typer.BadParameter(f"--{name} must be numbers above 0 with commas between, as 1,8,32")
    return numbers


def _fields(text: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise typer.BadParameter('--extra must be a JSON object, as {"top_k": 5}')
    return fields


@app.command()
def chaos(
    scenarios: Annotated[list[str] | None, typer.Argument(help="Some of the scenarios; none: all")] = None,
    model: Annotated[str, typer.Option(help="Model to serve; empty: the built-in one")] = "",
    requests: Annotated[int, typer.Option(help="Requests of the conservation scenario", min=1000)] = 10_000,
    clients: Annotated[int, typer.Option(help="Leaving clients of the disconnect scenario", min=8)] = 200,
    seconds: Annotated[float, typer.Option(help="Seconds of each overload", min=1)] = 10.0,
    seed: Annotated[int, typer.Option(help="Of every random choice")] = 0,
    log_dir: Annotated[Path | None, typer.Option(help="Keep the servers' logs here", file_okay=False)] = None,
) -> None:
    """Start servers on free loopback ports and hold each promise under stress: figure, target, verdict."""
    from service.bench.chaos import SCENARIOS, ChaosOptions, run_scenarios

    unknown = set(scenarios or ()) - set(SCENARIOS)
    if unknown:
        raise typer.BadParameter(f"there is no such scenario; there are: {', '.join(SCENARIOS)}")
    options = ChaosOptions(model, requests, clients, seconds, seed, log_dir)
    verdicts = run_scenarios(scenarios or list(SCENARIOS), options, typer.echo)
    typer.echo(json.dumps({name: [check.as_dict() for check in checks] for name, checks in verdicts.items()}))
    if not all(check.passed for checks in verdicts.values() for check in checks):
        raise typer.Exit(1)
