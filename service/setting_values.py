"""What a setting may hold: types that read a person's text, and refuse what makes no sense.

A reader gets whatever was given, a text from the environment or a value from code, and raises ValueError,
which `service.settings` turns into a line. Nothing is opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from service.settings_text import PREFIX

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#*]+")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def _size(value: object) -> object:
    """Read "512M" as 536870912; anything else goes on to pydantic as it is."""
    match = (
        re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if isinstance(value, str)
        else None
    )
    return int(match[1]) * _UNITS[match[2].upper()] if match else value


def _none_if_auto(value: object) -> object:
    """Read "auto" as None: the service chooses."""
    return None if isinstance(value, str) and value.strip().lower() == "auto" else _size(value)


def _split_keys(value: object) -> object:
    """Read "a, b" as two keys. Raises ValueError if there is none: ", ," must not mean open access."""
    keys = [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value
    if keys == []:
        raise ValueError("there is no key")
    return keys


def _split_origins(value: object) -> object:
    """Read "https://a.example, https://b.example" as two origins. Raises ValueError for what is none."""
    if not isinstance(value, str):
        return value
    origins = [origin.strip() for origin in value.split(",")]
    if origins != ["*"] and not all(map(_ORIGIN.fullmatch, origins)):
        raise ValueError("an origin is a scheme and a host, without a path")
    return tuple(origins)


def _split_aliases(value: object) -> object:
    """Read "a=mine, *" as {"a": "mine", "*": ""}; "" stands for the served model."""
    if not isinstance(value, str):
        return value
    parts = [part.strip().partition("=") for part in value.split(",") if part.strip()]
    aliases = {alias.strip(): name.strip() for alias, _, name in parts}
    if not aliases or any(not alias or not (name or alias == "*") for alias, name in aliases.items()):
        raise ValueError("an alias is a name, an equals sign and a model's name")
    return aliases


def _readable(path: Path | None) -> Path | None:
    """A file that can be read. Raises ValueError if it cannot."""
    if path is not None and not os.access(path, os.R_OK):
        raise ValueError("it cannot be read")
    return path


def _split_networks(value: object) -> object:
    """Read "10.0.0.0/8, ::1" as two networks."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _folder(path: Path) -> Path:
    """A folder that is there or can be made. Raises ValueError if a file is in its place, or no home is."""
    try:
        path = path.expanduser()
        nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    except RuntimeError as error:
        raise ValueError("there is no home folder") from error
    except OSError:
        return path  # not ours to look at: whoever opens it says so
    if not nearest.is_dir():
        raise ValueError("it is a file, or within one")
    return path


def with_precision(given: dict[str, Any]) -> dict[str, Any]:
    """Let `dtype` and `quantization`, old names of `precision`, say it where it is not given.

    Raises:
        ValueError: they contradict each other, or `precision`.
    """
    dtype, quantization, precision = (given.get(name) for name in ("dtype", "quantization", "precision"))
    if quantization == "int8" and dtype == "float32":
        raise ValueError(
            f"{PREFIX}QUANTIZATION=int8 contradicts {PREFIX}DTYPE=float32: it keeps keys and values in "
            f"bfloat16; say one precision in {PREFIX}PRECISION"
        )
    if quantization == "int8":
        wanted = "int8"
    elif dtype in ("float32", "bfloat16"):
        wanted = dtype
    else:
        wanted = None
    if precision is None:
        return {**given, "precision": wanted}
    if wanted not in (None, precision) or (quantization == "none" and precision == "int8"):
        raise ValueError(
            f"{PREFIX}DTYPE and {PREFIX}QUANTIZATION, old names of {PREFIX}PRECISION, contradict it; "
            "unset them"
        )
    return given


Size = Annotated[int, BeforeValidator(_size)]
AutoInt = Annotated[int | None, BeforeValidator(_none_if_auto)]
AutoPrecision = Annotated[Literal["float32", "bfloat16", "int8"] | None, BeforeValidator(_none_if_auto)]
WithinADay = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
WithinAnHour = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Folder = Annotated[Path, AfterValidator(_folder)]
ReadableFile = Annotated[Path | None, AfterValidator(_readable)]
Aliases = Annotated[Mapping[str, str], NoDecode, BeforeValidator(_split_aliases)]
Keys = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_keys)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split_networks)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_origins)]
