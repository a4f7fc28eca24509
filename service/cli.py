"""`textgen serve | generate | ask | bench | model …`: it and `commands` are all that prints.

Importing it is quick: nothing here loads torch or a web framework before a command asks for it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from service.commands.batch import batch
from service.commands.chat import chat
from service.commands.compare import compare
from service.commands.evaluate import evaluate
from service.commands.texts import ask, generate, summarize
from service.errors import SettingsError

app = typer.Typer(help="Serve a GPT-2 over HTTP.", no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"textgen-service {version('textgen-service')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Serve a GPT-2 over HTTP."""


class SettingsCommand(TyperCommand):
    """A command whose options are settings: they say what its help says, and are read for that only."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help."""
        from service.settings import Settings
        from service.settings_text import flag_help

        for parameter in self.params:
            if isinstance(parameter, TyperArgument | TyperOption) and parameter.name in Settings.model_fields:
                parameter.help = flag_help(Settings.model_fields[parameter.name])
        super().format_help(ctx, formatter)


@app.command(cls=SettingsCommand)
def serve(
    model: Annotated[str | None, typer.Argument()] = None,
    model_option: Annotated[str | None, typer.Option("--model", help="The same, as an option.")] = None,
    host: str | None = None,
    port: str | None = None,
    store: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    dtype: Annotated[str | None, typer.Option(hidden=True)] = None,  # old, as is the next: see `precision`
    quantization: Annotated[str | None, typer.Option(hidden=True)] = None,
    draft_model: str | None = None,
    deterministic: bool | None = None,
    threads: str | None = None,
    max_running: str | None = None,
    max_waiting: str | None = None,
    api_keys_file: str | None = None,
    log_format: str | None = None,
    log_level: str | None = None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Every flag is also a variable (--max-running: TEXTGEN_MAX_RUNNING); `textgen settings` lists them all.
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    option = flags.pop("model_option", None)
    if option is not None and flags.setdefault("model", option) != option:
        raise typer.BadParameter("MODEL and --model name two models; give one", param_hint="MODEL")
    raise typer.Exit(_serve(flags))


def _serve(flags: dict[str, Any]) -> int:
    """Serve with these flags and end the process; returns an exit code only if that could not begin."""
    from service.logs import configure_logs, get_logger
    from service.start_up import uncollected

    try:
        with uncollected():
            from service.settings import load_settings

            settings = load_settings(flags)
            configure_logs(settings.log_format, settings.log_level)
            _end_at_signals(lambda name: get_logger().info("stopped before the start was over", signal=name))
            from service.server import run_server
        code = run_server(settings)
    except SettingsError as error:
        for line in str(error).splitlines():
            typer.echo(f"textgen: {line}", err=True)
        return 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is closed: neither a hung thread nor the end of large libraries holds this up


@app.command(cls=SettingsCommand)
def warmup(model: str | None = None) -> None:
    """Load the model once and leave its compiled kernels in the cache; an image build runs this."""
    from model_store.errors import StoreError
    from service.settings import load_settings

    try:
        chosen = load_settings({} if model is None else {"model": model})
        from service.engine_setup import warm_up

        for name, value in warm_up(chosen).items():
            typer.echo(f"{name}: {value}")
    except (SettingsError, StoreError) as error:
        typer.echo(f"textgen: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def scale(
    replicas: Annotated[str, typer.Option(help="How many: 2, or 1-4 to let their load decide.")] = "1",
    cpus: Annotated[float, typer.Option(help="Processors of each replica.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs of each replica.")] = 0.0,
    host: Annotated[str, typer.Option(help="Of front and replicas; 0.0.0.0 for many nodes.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port that Ray Serve listens on.")] = 8000,
    print_config: Annotated[bool, typer.Option("--print", help="Print the config only.")] = False,
) -> None:
    """Serve a model with many replicas on Ray Serve; needs the extra `scale`. Settings are the variables."""
    try:
        import yaml

        from service.scale import environment, parse_args, serve_config
        from service.settings import load_settings
    except ModuleNotFoundError as error:
        typer.echo(f"textgen: {error.name} is missing; install the extra: pip install '.[scale]'", err=True)
        raise typer.Exit(2) from None
    lowest, _, highest = replicas.partition("-")
    given = {"min_replicas": lowest, "max_replicas": highest or lowest, "num_cpus": cpus, "num_gpus": gpus}
    try:
        variables = environment(load_settings())
        config = serve_config(parse_args(given), host, port)
    except SettingsError as error:
        for line in str(error).splitlines():
            typer.echo(f"textgen: {line}", err=True)
        raise typer.Exit(2) from None
    text = yaml.safe_dump(config, sort_keys=False)
    if print_config:
        typer.echo("# The environment of `ray start` and `serve run`:")
        typer.echo("".join(f"#   {name}={value}\n" for name, value in variables.items()) + text, nl=False)
        return
    with tempfile.NamedTemporaryFile("w", prefix="textgen-", suffix=".yaml", delete=False) as file:
        file.write(text)
    os.environ |= variables
    os.execv(sys.executable, [sys.executable, "-m", "ray.serve.scripts", "run", file.name])


@app.command()
def settings() -> None:
    """List every setting with its default, as a Markdown table."""
    from service.settings import settings_table

    typer.echo(settings_table())


for _command in (generate, summarize, ask, chat, batch):
    app.command()(_command)


class ModelCommands(TyperGroup):
    """`textgen model`: the store's commands; training's, and torch with them, once one of them or the list of
    all is asked for.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, the store's first."""
        self._add_training()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One command, or None."""
        if cmd_name not in self.commands:
            self._add_training()
        return super().get_command(ctx, cmd_name)

    def _add_training(self) -> None:
        # Read when torch is loaded: a thread that spins for milliseconds while it waits takes the processor
        # from the one it waits for, and beside other programs a step takes ten times as long.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        from model_store.training.cli import app as training

        measuring = typer.Typer()
        measuring.command()(evaluate)
        measuring.command()(compare)
        for commands in (training, measuring):
            self.commands.update(typer.main.get_group(commands).commands)


def _mount_commands() -> None:
    """Add the commands that other packages bring."""
    from model_store.cli import app as model_app

    app.add_typer(model_app, name="model", cls=ModelCommands)
    if importlib.util.find_spec("service.bench") is not None:
        bench = importlib.import_module("service.bench")
        if hasattr(bench, "app"):
            app.add_typer(bench.app, name="bench")


def _end_at_signals(say: Callable[[str], None]) -> None:
    """Let SIGTERM and Ctrl-C end the process with 0: nothing is in flight until the server runs.

    The server then puts its own handlers in the place of these. An exception raised here instead could be
    lost in whatever is being imported.

    Args:
        say: tells of the end; is given the signal's name.
    """

    def end(number: int, frame: FrameType | None) -> None:
        with suppress(Exception):
            say(signal.Signals(number).name)
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _fill_closed_streams() -> None:
    """Put the null device where a standard stream is closed, as in `2>&-`.

    Else the next socket would get its number, and what a library prints would go to a client.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def main() -> None:
    """Entry point of `textgen`."""
    if sys.argv[1:2] == ["serve"]:
        _end_at_signals(lambda name: typer.echo(f"textgen: stopped by {name} before the start", err=True))
    _fill_closed_streams()
    _mount_commands()
    app()


if __name__ == "__main__":
    main()
