"""What the commands share: whom they ask, what they read, and how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from service.errors import RequestError, SettingsError, TextgenError

if TYPE_CHECKING:  # an eighth of a second, not spent on `--help`
    import httpx

INTERRUPTED = 130


@contextmanager
def asking(url: str | None, key_file: Path | None, model: str | None) -> Iterator[httpx.Client]:
    """A client of the service at `url`, or of a model that is loaded into this process.

    What goes wrong inside ends the process with one line on standard error and an exit code, see the package.
    """
    try:
        if url is None:
            with _loaded(model or "") as http:
                yield http
        else:
            with _connected(url, key_file, model) as http:
                yield http
        sys.stdout.flush()
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except TextgenError as error:
        for line in str(error).splitlines():
            say(line)
        sys.stdout.flush()
        raise typer.Exit(2 if isinstance(error, (RequestError, SettingsError)) else 1) from None


def say(line: str) -> None:
    """One line on standard error."""
    typer.echo(f"textgen: {line}", err=True)


def _leave(code: int) -> None:
    """End at once: a model that loads holds threads that cannot be interrupted."""
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def _loaded(model: str) -> Iterator[httpx.Client]:
    from service.local import LocalService, local_settings
    from service.logs import stay_quiet

    settings = local_settings(model, log_level="warning")
    stay_quiet()
    with LocalService(settings) as service:
        yield service.http


@contextmanager
def _connected(url: str, key_file: Path | None, model: str | None) -> Iterator[httpx.Client]:
    import httpx

    if model is not None:
        raise SettingsError("--url and --model contradict each other: the service has a model of its own")
    if not url.startswith(("http://", "https://")):
        raise SettingsError("--url must begin with http:// or https://")
    headers = {} if key_file is None else {"Authorization": f"Bearer {_key(key_file)}"}
    with httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(None, connect=10)) as http:
        yield http


def _key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--key-file cannot be read ({type(error).__name__})") from error


def read_text(path: str, what: str) -> str:
    """A text file, or standard input for "-"; a line break at the end of what is piped in is not part of it.

    Raises:
        SettingsError: it cannot be read, is not UTF-8, or nothing is piped in.
    """
    if path == "-" and sys.stdin.isatty():
        raise SettingsError(f"give {what}, or pipe it in")
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{'standard input' if path == '-' else path} is not a text in UTF-8") from error
    return text.removesuffix("\n") if path == "-" else text
