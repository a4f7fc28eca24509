"""The one reader of the environment: every `TEXTGEN_*` variable, its default, its legal values, its meaning.

`load_settings` turns what is wrong into one `SettingsError` with one line for each mistake; misspelt
variables are mistakes too. `settings_table` prints the same facts as Markdown, for `docs/settings.md`. No
model and no socket is opened here. `setting_values` has the types, `settings_text` the words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from model_store.layout import default_store
from service.errors import SettingsError
from service.keys import read_keys
from service.service_links import service_links
from service.setting_values import (
    Aliases,
    AutoInt,
    AutoPrecision,
    Folder,
    Keys,
    Networks,
    Origins,
    ReadableFile,
    Size,
    WithinADay,
    WithinAnHour,
    with_precision,
)
from service.settings_text import (
    PREFIX,
    error_line,
    name_variables,
    old_setting,
    setting,
    table,
    unknown_lines,
    variable_name,
)


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

    model: str = setting(
        "",
        "The model to serve; empty: the built-in one",
        "a store name, `name@version`, a folder, or `hf:<hub id>`",
    )
    store: Folder = Field(
        validate_default=True,
        default_factory=default_store,
        description="Folder of imported and trained models, writable",
        json_schema_extra={"legal": "a folder", "default": "~/.local/share/textgen"},
    )
    model_aliases: Aliases = setting(
        {},
        "Other names that `/v1` takes for a model, as `gpt-3.5-turbo-instruct=mine`; `*`: any name",
        "`alias=name` or `*`, separated by commas",
    )
    chat_template: ReadableFile = setting(
        None,
        "Jinja template that conversations are rendered with, before whatever the model brings",
        "a readable file",
    )
    parse_special_tokens: bool = setting(
        True,
        "Read special tokens in a prompt as such where a request does not say; `0`: as text",
        "`0` or `1`",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Where the model runs; `auto`: CUDA when there is one", "`auto`, `cpu` or `cuda`"
    )
    precision: AutoPrecision = setting(
        None,
        "Precision of the weights; keys and values are kept in float32 beside float32, else in bfloat16; "
        "`auto`: bfloat16, or float32 where torch computes and is slow with bfloat16",
        "`auto`, `float32`, `bfloat16` or `int8`",
    )
    dtype: Literal["auto", "float32", "bfloat16"] | None = old_setting("`auto`, `float32` or `bfloat16`")
    quantization: Literal["none", "int8"] | None = old_setting("`none` or `int8`")
    deterministic: bool = setting(
        False, "The same text whatever else is in the batch, in every precision, at some cost", "`0` or `1`"
    )
    threads: AutoInt = setting(
        None,
        "Threads that compute on the processor; `auto`: one for each logical processor within the CPU quota",
        "`auto` or 1 … 256",
        ge=1,
        le=256,
    )
    speculation: bool = setting(
        True, "Guess tokens from the prompt and verify them in one pass; no text changes", "`0` or `1`"
    )
    draft_model: str = setting(
        "",
        "A small model with the same tokenizer that guesses tokens for the served one to verify in one pass; "
        "no text changes; empty: none",
        "as `TEXTGEN_MODEL`",
    )
    kernel_fallback: bool = setting(
        True,
        "Let torch compute, about a hundred times slower and with other texts for a seed, where the fast "
        "kernels fail even when compiled anew; `0`: the start fails instead",
        "`0` or `1`",
    )
    kv_cache_bytes: AutoInt = setting(
        None,
        "Memory for keys and values; `auto`: from what is free",
        "`auto` or bytes, as `512M` or `2G`",
        ge=2**16,
    )
    max_batch_tokens: AutoInt = setting(
        None, "Maximum tokens per forward pass", "`auto` or 16 … 1048576", ge=16, le=2**20
    )
    max_running: AutoInt = setting(
        None, "Maximum sequences per forward pass", "`auto` or 1 … 4096", ge=1, le=4096
    )
    max_waiting: int = setting(
        512,
        "Sequences that may wait beyond the `TEXTGEN_MAX_RUNNING` ones; more are refused with 429",
        "1 … 1000000",
        ge=1,
        le=10**6,
    )
    max_job_sequences: int = setting(
        256, "Maximum sequences (chunks, windows, samples) per request", "1 … 100000", ge=1, le=10**5
    )
    host: str = setting(
        "127.0.0.1", "Address to listen on; 0.0.0.0: all", "a host name or address", min_length=1
    )
    port: int = setting(8000, "Port to listen on; 0: any free one", "0 … 65535", ge=0, le=65535)
    request_timeout_s: WithinADay = setting(
        120.0,
        "Maximum seconds per request, queueing included; `timeout_s` can only shorten it",
        "above 0, up to 86400",
    )
    drain_s: float = setting(
        30.0,
        "Seconds that running requests have to finish after SIGTERM",
        "0 … 86400",
        ge=0,
        le=86400,
        allow_inf_nan=False,
    )
    body_timeout_s: WithinAnHour = setting(
        20.0,
        "Seconds that a request may take to arrive: its headers, and then its body",
        "above 0, up to 3600",
    )
    send_timeout_s: WithinAnHour = setting(
        30.0,
        "Seconds after which a client that stopped reading its stream is cut off",
        "above 0, up to 3600",
    )
    max_body_bytes: Size = setting(
        4 * 2**20, "Largest request body", "bytes from 1024 on, as `512K` or `4M`", ge=1024, le=2**31
    )
    max_connections: AutoInt = setting(
        None,
        "Connections open at a time; one more closes an idle one, or gets 429; `auto`: 2048, or 256 fewer "
        "than the limit of open files",
        "`auto` or 1 … 1000000",
        ge=1,
        le=10**6,
    )
    api_keys: Keys = setting(
        (),
        "Keys that clients must send as `Authorization: Bearer …`; neither these nor a file: open",
        "one key or more, separated by commas",
    )
    api_keys_file: Path | None = setting(
        None,
        "File with one key a line, read again when it changes and on SIGHUP; `#` begins a comment, and "
        "`#tenant=NAME` names the key of the next line in metrics and log",
        "a readable file",
    )
    trusted_proxies: Networks = setting(
        (),
        "Proxies whose `X-Forwarded-For` is believed; without keys, clients take turns by their address",
        "addresses or networks as `10.0.0.0/8`, separated by commas",
    )
    key_concurrency: int = setting(
        0, "Maximum requests in flight per key; 0: no limit", "0 … 100000", ge=0, le=10**5
    )
    ops_require_key: bool = setting(
        False,
        "Ask for a key at `/metrics`, `/info`, `/docs` too (`/livez`, `/readyz` stay open)",
        "`0` or `1`",
    )
    cors_origins: Origins = setting(
        (),
        "Origins whose pages may call the service from a browser; empty: none but its own",
        "`*`, or `https://host[:port]` and the like, separated by commas",
    )
    otlp_endpoint: str = setting(
        "",
        "Collector that traces are sent to, by OTLP over HTTP; empty: no tracing. Needs the extra `otel`",
        "a URL, as `http://localhost:4318`",
        pattern=r"^(https?://[^\s/?#]+(/[^\s?#]*)?)?$",
    )
    log_format: Literal["text", "json"] = setting("text", "How log lines look", "`text` or `json`")
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Lowest severity that is written", "`debug`, `info`, `warning` or `error`"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, given: dict[str, Any]) -> dict[str, Any]:
        return with_precision(given)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.keys()  # raises unless the file can be read and holds keys
        if self.draft_model and not self.speculation:
            raise ValueError(
                f"{variable_name('draft_model')} needs {variable_name('speculation')}=1; unset one of the two"
            )
        return self

    def notices(self) -> list[str]:
        """What a person should know about the settings as they are, one line each."""
        old = [variable_name(name) for name in ("dtype", "quantization") if getattr(self, name) is not None]
        instead = f"say {variable_name('precision')}={self.precision or 'auto'} instead"
        return [f"{' and '.join(old)} will be gone in the next version: {instead}"] if old else []

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
    lines = unknown_lines(os.environ.keys() - service_links(os.environ), Settings.model_fields)
    try:
        settings = Settings(**dict(overrides or {}))
    except ValidationError as error:
        fields = Settings.model_fields
        lines += [error_line(item["loc"], item["msg"], fields) for item in error.errors(include_input=False)]
    if lines:
        raise SettingsError("\n".join(dict.fromkeys(lines)))
    return settings


def with_variables(text: str) -> str:
    """An engine's message in a person's words: each `name` of a setting becomes its variable."""
    return name_variables(text, Settings.model_fields)


def settings_table() -> str:
    """The table of `docs/settings.md`."""
    return table(Settings.model_fields)
