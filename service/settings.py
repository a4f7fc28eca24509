"""The one reader of the environment: every `TEXTGEN_*` variable, its default, its legal values, its meaning.

`load_settings` turns what is wrong into one `SettingsError` with one line for each mistake; misspelt
variables are mistakes too. `settings_table` prints the same facts as Markdown, for `docs/settings.md`. No
model and no socket is opened here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from model_store.layout import default_store
from service.errors import SettingsError
from service.keys import read_keys
from service.service_links import service_links

PREFIX = "TEXTGEN_"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#*]+")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_UP_TO_AN_HOUR: dict[str, Any] = {"gt": 0, "le": 3600, "allow_inf_nan": False}


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


Size = Annotated[int, BeforeValidator(_size)]
AutoInt = Annotated[int | None, BeforeValidator(_none_if_auto)]
AutoPrecision = Annotated[Literal["float32", "bfloat16", "int8"] | None, BeforeValidator(_none_if_auto)]


def _setting(default: Any, description: str, legal: str, **bounds: Any) -> Any:
    """One setting: what it does, and its legal values in words for the error line and the table."""
    return Field(default, description=description, json_schema_extra={"legal": legal}, **bounds)


def _old_setting(legal: str) -> Any:
    """One of the two that `precision` took the place of: not in the table, and gone in the next version."""
    return Field(None, description="See `precision`", json_schema_extra={"legal": legal, "is_old": True})


class Settings(BaseSettings):
    """Everything a person can set, validated and frozen. Names are the variables' without `TEXTGEN_`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment without Kubernetes' service links."""
        assert isinstance(env_settings, EnvSettingsSource), "it is what pydantic-settings makes"
        links = {name.lower() for name in service_links(os.environ)}
        env_settings.env_vars = {k: v for k, v in env_settings.env_vars.items() if k not in links}
        return init_settings, env_settings

    @property
    def ignored_variables(self) -> tuple[str, ...]:
        """Variables of the environment that look like settings and are Kubernetes' service links."""
        return service_links(os.environ)

    model: str = _setting(
        "",
        "The model to serve; empty: the built-in one",
        "a store name, `name@version`, a folder, or `hf:<hub id>`",
    )
    store: Annotated[Path, AfterValidator(_folder)] = Field(
        validate_default=True,
        default_factory=default_store,
        description="Folder of imported and trained models, writable",
        json_schema_extra={"legal": "a folder", "default": "~/.local/share/textgen"},
    )
    model_aliases: Annotated[Mapping[str, str], NoDecode, BeforeValidator(_split_aliases)] = _setting(
        {},
        "Other names that `/v1` takes for a model, as `gpt-3.5-turbo-instruct=mine`; `*`: any name",
        "`alias=name` or `*`, separated by commas",
    )
    chat_template: Annotated[Path | None, AfterValidator(_readable)] = _setting(
        None,
        "Jinja template that conversations are rendered with, before whatever the model brings",
        "a readable file",
    )
    parse_special_tokens: bool = _setting(
        True,
        "Read special tokens in a prompt as such where a request does not say; `0`: as text",
        "`0` or `1`",
    )
    device: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "Where the model runs; `auto`: CUDA when there is one", "`auto`, `cpu` or `cuda`"
    )
    precision: AutoPrecision = _setting(
        None,
        "Precision of the weights; keys and values are kept in float32 beside float32, else in bfloat16; "
        "`auto`: bfloat16, or float32 where torch computes and is slow with bfloat16",
        "`auto`, `float32`, `bfloat16` or `int8`",
    )
    dtype: Literal["auto", "float32", "bfloat16"] | None = _old_setting("`auto`, `float32` or `bfloat16`")
    quantization: Literal["none", "int8"] | None = _old_setting("`none` or `int8`")
    deterministic: bool = _setting(
        False, "The same text whatever else is in the batch, in every precision, at some cost", "`0` or `1`"
    )
    threads: AutoInt = _setting(
        None,
        "Threads that compute on the processor; `auto`: one for each logical processor within the CPU quota",
        "`auto` or 1 … 256",
        ge=1,
        le=256,
    )
    speculation: bool = _setting(
        True, "Guess tokens from the prompt and verify them in one pass; no text changes", "`0` or `1`"
    )
    kernel_fallback: bool = _setting(
        True,
        "Let torch compute, about a hundred times slower and with other texts for a seed, where the fast "
        "kernels fail even when compiled anew; `0`: the start fails instead",
        "`0` or `1`",
    )
    kv_cache_bytes: AutoInt = _setting(
        None,
        "Memory for keys and values; `auto`: from what is free",
        "`auto` or bytes, as `512M` or `2G`",
        ge=2**16,
    )
    max_batch_tokens: AutoInt = _setting(
        None, "Maximum tokens per forward pass", "`auto` or 16 … 1048576", ge=16, le=2**20
    )
    max_running: AutoInt = _setting(
        None, "Maximum sequences per forward pass", "`auto` or 1 … 4096", ge=1, le=4096
    )
    max_waiting: int = _setting(
        512,
        "Sequences that may wait beyond the `TEXTGEN_MAX_RUNNING` ones; more are refused with 429",
        "1 … 1000000",
        ge=1,
        le=10**6,
    )
    max_job_sequences: int = _setting(
        256, "Maximum sequences (chunks, windows, samples) per request", "1 … 100000", ge=1, le=10**5
    )
    host: str = _setting(
        "127.0.0.1", "Address to listen on; 0.0.0.0: all", "a host name or address", min_length=1
    )
    port: int = _setting(8000, "Port to listen on; 0: any free one", "0 … 65535", ge=0, le=65535)
    request_timeout_s: float = _setting(
        120.0,
        "Maximum seconds per request, queueing included; `timeout_s` can only shorten it",
        "above 0, up to 86400",
        gt=0,
        le=86400,
        allow_inf_nan=False,
    )
    drain_s: float = _setting(
        30.0,
        "Seconds that running requests have to finish after SIGTERM",
        "0 … 86400",
        ge=0,
        le=86400,
        allow_inf_nan=False,
    )
    body_timeout_s: float = _setting(
        20.0,
        "Seconds that a request may take to arrive: its headers, and then its body",
        "above 0, up to 3600",
        **_UP_TO_AN_HOUR,
    )
    send_timeout_s: float = _setting(
        30.0,
        "Seconds after which a client that stopped reading its stream is cut off",
        "above 0, up to 3600",
        **_UP_TO_AN_HOUR,
    )
    max_body_bytes: Size = _setting(
        4 * 2**20, "Largest request body", "bytes from 1024 on, as `512K` or `4M`", ge=1024, le=2**31
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_keys)] = _setting(
        (),
        "Keys that clients must send as `Authorization: Bearer …`; neither these nor a file: open",
        "one key or more, separated by commas",
    )
    api_keys_file: Path | None = _setting(
        None,
        "File with one key a line, read again when it changes and on SIGHUP; `#` begins a comment, and "
        "`#tenant=NAME` names the key of the next line in metrics and log",
        "a readable file",
    )
    trusted_proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split_networks)
    ] = _setting(
        (),
        "Proxies whose `X-Forwarded-For` is believed; without keys, clients take turns by their address",
        "addresses or networks as `10.0.0.0/8`, separated by commas",
    )
    key_concurrency: int = _setting(
        0, "Maximum requests in flight per key; 0: no limit", "0 … 100000", ge=0, le=10**5
    )
    ops_require_key: bool = _setting(
        False,
        "Ask for a key at `/metrics`, `/info`, `/docs` too (`/livez`, `/readyz` stay open)",
        "`0` or `1`",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_origins)] = _setting(
        (),
        "Origins whose pages may call the service from a browser; empty: none but its own",
        "`*`, or `https://host[:port]` and the like, separated by commas",
    )
    otlp_endpoint: str = _setting(
        "",
        "Collector that traces are sent to, by OTLP over HTTP; empty: no tracing. Needs the extra `otel`",
        "a URL, as `http://localhost:4318`",
        pattern=r"^(https?://[^\s/?#]+(/[^\s?#]*)?)?$",
    )
    log_format: Literal["text", "json"] = _setting("text", "How log lines look", "`text` or `json`")
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "Lowest severity that is written", "`debug`, `info`, `warning` or `error`"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Let `dtype` and `quantization` say the precision where nothing else does.

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

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.keys()  # raises unless the file can be read and holds keys
        return self

    def notices(self) -> list[str]:
        """What a person should know about the settings as they are, one line each."""
        old = [variable_name(name) for name in ("dtype", "quantization") if getattr(self, name) is not None]
        if not old:
            return []
        return [
            f"{' and '.join(old)} will be gone in the next version: "
            f"say {variable_name('precision')}={self.precision or 'auto'} instead"
        ]

    def keys(self) -> dict[str, str]:
        """All API keys, of the variable and of the file, each with its tenant's name or "".

        Raises:
            ValueError: the file cannot be read, or holds no key: an empty file must not mean open access.
        """
        keys = {secret.get_secret_value(): "" for secret in self.api_keys}
        return keys if self.api_keys_file is None else keys | read_keys(self.api_keys_file)


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read flags and the environment.

    Args:
        overrides: values from flags, by field name; they win over the environment.

    Raises:
        SettingsError: one line for each wrong value and for each unknown `TEXTGEN_*` variable.
    """
    lines = _unknown_variables()
    try:
        settings = Settings(**dict(overrides or {}))
    except ValidationError as error:
        lines += [_error_line(item["loc"], item["msg"]) for item in error.errors(include_input=False)]
    if lines:
        raise SettingsError("\n".join(dict.fromkeys(lines)))
    return settings


def _unknown_variables() -> list[str]:
    """One line for each `TEXTGEN_*` variable that no setting reads, with the nearest name that one does."""
    known = [variable_name(field) for field in Settings.model_fields]
    unknown = sorted(
        name
        for name in os.environ.keys() - service_links(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    )
    return [f"{name} is not a setting" + _nearest(name, known) for name in unknown]


def _nearest(name: str, known: list[str]) -> str:
    """A hint, or nothing when no name is near."""
    found = difflib.get_close_matches(name.upper(), known, n=1)
    return f"; did you mean {found[0]}?" if found else "; `textgen settings` lists them all"


def _error_line(location: tuple[int | str, ...], message: str) -> str:
    """One line for one wrong value: the variable and what is legal; never the value, it may be a secret."""
    if not location:
        return message.removeprefix("Value error, ")
    field = str(location[0])
    legal = legal_values(Settings.model_fields[field]).replace("`", "")
    return f"{variable_name(field)} has a value that is not legal; legal is {legal}"


def variable_name(field: str) -> str:
    """The environment variable of a field: `max_running` -> `TEXTGEN_MAX_RUNNING`."""
    return PREFIX + field.upper()


def with_variables(text: str) -> str:
    """An engine's message in a person's words: each `name` of a setting becomes its variable."""
    known = "|".join(Settings.model_fields)
    return re.sub(rf"`({known})`", lambda name: variable_name(name[1]), text)


def legal_values(field: FieldInfo) -> str:
    """The legal values of a setting in words, as Markdown."""
    extra = field.json_schema_extra
    return str(extra["legal"]) if isinstance(extra, dict) else ""


def settings_table() -> str:
    """The table of `docs/settings.md`: variable, default, legal values, meaning; one row for each setting."""
    rows = [
        f"| `{variable_name(name)}` | {_shown_default(field)} | {legal_values(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("is_old"))
    ]
    return "\n".join(["| variable | default | legal | meaning |", "| --- | --- | --- | --- |", *rows])


def _shown_default(field: FieldInfo) -> str:
    """The default as a person would type it."""
    extra = field.json_schema_extra
    value = extra["default"] if isinstance(extra, dict) and "default" in extra else field.default
    if value is None and "auto" in legal_values(field):
        return "`auto`"
    if value in (None, "", (), {}):
        return ""
    return f"`{int(value) if isinstance(value, bool) else value}`"
