"""Settings: read from the environment, wrong ones named, never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.errors import SettingsError
from service.settings import Settings, load_settings, settings_table, with_variables
from service.settings_text import flag_help, variable_name

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def problems() -> list[str]:
    """The lines that stop a start with the present environment."""
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value).splitlines()


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_MAX_RUNNING", "7")
    assert load_settings().max_running == 7


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_PORT", "1")
    assert load_settings({"port": "2"}).port == 2


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_PORT", "")
    assert load_settings().port == 8000


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("512K", 2**19), ("2m", 2**21), ("1GiB", 2**30)])
def test_sizes_have_units(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("TEXTGEN_MAX_BODY_BYTES", text)
    assert load_settings().max_body_bytes == size


@pytest.mark.parametrize("name", ["THREADS", "KV_CACHE_BYTES", "MAX_RUNNING"])
def test_auto_leaves_the_choice_to_the_service(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"TEXTGEN_{name}", "auto")
    assert getattr(load_settings(), name.lower()) is None


WRONG = {
    "DEVICE": "tpu",
    "PRECISION": "float16",
    "DTYPE": "float16",
    "QUANTIZATION": "int4",
    "DETERMINISTIC": "perhaps",
    "PORT": "65536",
    "MAX_WAITING": "0",
    "REQUEST_TIMEOUT_S": "nan",
    "DRAIN_S": "-1",
    "KV_CACHE_BYTES": "lots",
    "LOG_FORMAT": "xml",
    "CORS_ORIGINS": "https://a.example/path",
    "OTLP_ENDPOINT": "localhost:4318",
}


@pytest.mark.parametrize(("name", "value"), WRONG.items())
def test_a_wrong_value_is_one_line_with_the_legal_ones(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TEXTGEN_{name}", value)
    (line,) = problems()
    assert line.startswith(f"TEXTGEN_{name} ") and "legal is" in line


def test_every_wrong_setting_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_PORT", "x")
    monkeypatch.setenv("TEXTGEN_THREADS", "x")
    assert len(problems()) == 2


def test_a_misspelt_variable_is_named_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_MAX_RUNING", "1")
    assert problems() == ["TEXTGEN_MAX_RUNING is not a setting; did you mean TEXTGEN_MAX_RUNNING?"]


def links_to(service: str) -> dict[str, str]:
    """What Kubernetes sets for a Service with one port, named `http`."""
    prefix = service.upper().replace("-", "_")
    return {
        f"{prefix}_SERVICE_HOST": "10.100.120.175",
        f"{prefix}_SERVICE_PORT": "8000",
        f"{prefix}_SERVICE_PORT_HTTP": "8000",
        f"{prefix}_PORT": "tcp://10.100.120.175:8000",
        f"{prefix}_PORT_8000_TCP": "tcp://10.100.120.175:8000",
        f"{prefix}_PORT_8000_TCP_PROTO": "tcp",
        f"{prefix}_PORT_8000_TCP_PORT": "8000",
        f"{prefix}_PORT_8000_TCP_ADDR": "10.100.120.175",
    }


@pytest.mark.parametrize(
    "service", ["textgen", "textgen-gpu", "textgen-service", "textgen-v2", "textgen-max"]
)
def test_service_links_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    links = links_to(service)
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.port == 8000
    assert settings.ignored_variables == tuple(sorted(links))


def test_service_links_over_udp_and_version_6_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_PORT", "udp://[fd00:10:96::1]:53")
    monkeypatch.setenv("TEXTGEN_DNS_SERVICE_HOST", "fd00:10:96::1")
    monkeypatch.setenv("TEXTGEN_DNS_PORT_53_UDP_PROTO", "udp")
    assert load_settings().port == 8000


@pytest.mark.parametrize("name", ["TEXTGEN_GPU_PORT", "TEXTGEN_SERVICE_HOST", "TEXTGEN_PORT_8000_TCP_PROTO"])
def test_what_only_has_the_name_of_a_service_link_is_no_setting(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "something else")
    (line,) = problems()
    assert line.startswith(f"{name} is not a setting")


def test_a_port_beside_service_links_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in links_to("textgen-gpu").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TEXTGEN_PORT", "8080")
    assert load_settings().port == 8080


def test_keys_come_from_the_variable_and_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\none\n\n two \n")
    monkeypatch.setenv("TEXTGEN_API_KEYS", "three, one")
    monkeypatch.setenv("TEXTGEN_API_KEYS_FILE", str(tmp_path / "keys"))
    assert list(load_settings().keys()) == ["three", "one", "two"]


def test_a_key_file_without_keys_does_not_open_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    monkeypatch.setenv("TEXTGEN_API_KEYS_FILE", str(tmp_path / "keys"))
    assert problems() == ["TEXTGEN_API_KEYS_FILE holds no key; unset it to serve without keys"]


def test_a_key_file_that_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_API_KEYS_FILE", "/nowhere/keys")
    assert problems() == ["TEXTGEN_API_KEYS_FILE cannot be read (FileNotFoundError)"]


@pytest.mark.parametrize("value", [",", ", ,", " "])
def test_a_key_variable_without_keys_does_not_open_the_service(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TEXTGEN_API_KEYS", value)
    (line,) = problems()
    assert line.startswith("TEXTGEN_API_KEYS ") and "legal is one key or more" in line


def test_a_key_file_may_come_from_any_editor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfone\r\n\r\n# ours\r\ntwo  \r\n")
    monkeypatch.setenv("TEXTGEN_API_KEYS_FILE", str(tmp_path / "keys"))
    assert list(load_settings().keys()) == ["one", "two"]


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_key_file_is_parted_at_line_ends_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mark: str
) -> None:
    (tmp_path / "keys").write_text(f"left{mark}right\ntwo\n", encoding="utf-8", newline="")
    monkeypatch.setenv("TEXTGEN_API_KEYS_FILE", str(tmp_path / "keys"))
    assert list(load_settings().keys()) == [f"left{mark}right", "two"]


def test_a_key_file_that_is_no_text_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xff\xfeo\0n\0e\0")
    monkeypatch.setenv("TEXTGEN_API_KEYS_FILE", str(tmp_path / "keys"))
    assert problems() == ["TEXTGEN_API_KEYS_FILE cannot be read (UnicodeDecodeError)"]


def test_a_tenant_is_named_above_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(
        "#tenant=acme\none\n# plain\ntwo\n#tenant= b.c-d_1 \n\nthree\n# tenant=no\nfour\n"
    )
    monkeypatch.setenv("TEXTGEN_API_KEYS_FILE", str(tmp_path / "keys"))
    assert load_settings().keys() == {"one": "acme", "two": "", "three": "b.c-d_1", "four": ""}


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 65, "a/b"])
def test_a_name_that_is_not_legal_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "keys").write_text(f"# ours\n#tenant={name}\nsecret\n")
    monkeypatch.setenv("TEXTGEN_API_KEYS_FILE", str(tmp_path / "keys"))
    (line,) = problems()
    assert "names a tenant in line 2 that is not legal" in line and "secret" not in line


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("*", ("*",)),
        ("https://a.example, http://localhost:5173", ("https://a.example", "http://localhost:5173")),
        ("", ()),
    ],
)
def test_origins_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TEXTGEN_CORS_ORIGINS", text)
    assert load_settings().cors_origins == origins


@pytest.mark.parametrize("place", ["file", "file/within"])
def test_a_store_must_not_be_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TEXTGEN_STORE", str(tmp_path / place))
    assert problems() == ["TEXTGEN_STORE has a value that is not legal; legal is a folder"]


def test_a_store_may_be_made_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEXTGEN_STORE", str(tmp_path / "new" / "store"))
    assert load_settings().store == tmp_path / "new" / "store"


def test_a_store_is_found_from_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TEXTGEN_STORE", "~/models")
    assert load_settings().store == tmp_path / "models"


def test_int8_beside_float32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_QUANTIZATION", "int8")
    monkeypatch.setenv("TEXTGEN_DTYPE", "float32")
    (line,) = problems()
    assert line.startswith("TEXTGEN_QUANTIZATION=int8 contradicts TEXTGEN_DTYPE=float32")


def test_int8_beside_bfloat16_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_QUANTIZATION", "int8")
    monkeypatch.setenv("TEXTGEN_DTYPE", "bfloat16")
    assert load_settings().precision == "int8"


@pytest.mark.parametrize(
    ("old", "precision"),
    [
        ({"DTYPE": "auto"}, None),
        ({"DTYPE": "float32"}, "float32"),
        ({"DTYPE": "bfloat16", "QUANTIZATION": "none"}, "bfloat16"),
        ({"QUANTIZATION": "int8"}, "int8"),
        ({"QUANTIZATION": "none"}, None),
    ],
    ids=str,
)
def test_the_old_names_of_the_precision_are_read_with_one_line(
    monkeypatch: pytest.MonkeyPatch, old: dict[str, str], precision: str | None
) -> None:
    for name, value in old.items():
        monkeypatch.setenv(f"TEXTGEN_{name}", value)
    settings = load_settings()
    assert settings.precision == precision
    (line,) = settings.notices()
    assert all(f"TEXTGEN_{name}" in line for name in old)
    assert f"TEXTGEN_PRECISION={precision or 'auto'}" in line


@pytest.mark.parametrize(
    ("precision", "old"),
    [
        ("int8", {"DTYPE": "float32"}),
        ("int8", {"QUANTIZATION": "none"}),
        ("float32", {"QUANTIZATION": "int8"}),
        ("bfloat16", {"DTYPE": "float32"}),
        ("auto", {"DTYPE": "float32"}),
    ],
    ids=str,
)
def test_old_names_that_contradict_the_precision_are_refused(
    monkeypatch: pytest.MonkeyPatch, precision: str, old: dict[str, str]
) -> None:
    for name, value in {"PRECISION": precision, **old}.items():
        monkeypatch.setenv(f"TEXTGEN_{name}", value)
    (line,) = problems()
    assert line.startswith(
        "TEXTGEN_DTYPE and TEXTGEN_QUANTIZATION, old names of TEXTGEN_PRECISION, contradict"
    )


def test_old_names_that_say_the_same_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PRECISION": "int8", "DTYPE": "auto", "QUANTIZATION": "int8"}.items():
        monkeypatch.setenv(f"TEXTGEN_{name}", value)
    assert load_settings().precision == "int8"


def test_without_old_names_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_PRECISION", "auto")
    settings = load_settings()
    assert settings.precision is None and settings.notices() == []


def test_an_engines_message_is_told_with_the_variables_names() -> None:
    said = "lower `kv_cache_bytes` or `max_running`, or convert with `textgen model import`; a smaller model"
    assert with_variables(said) == (
        "lower TEXTGEN_KV_CACHE_BYTES or TEXTGEN_MAX_RUNNING, or convert with `textgen model import`; "
        "a smaller model"
    )


def test_printing_settings_shows_no_key() -> None:
    assert "hush" not in repr(Settings(api_keys="hush"))  # type: ignore[arg-type]  # as the environment has it


def test_the_readme_has_the_table_that_the_code_prints() -> None:
    assert settings_table() in DOCUMENT.read_text(encoding="utf-8")


OLD = ("dtype", "quantization")


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in OLD])
def test_every_setting_is_described(name: str) -> None:
    assert f"| `{variable_name(name)}` |" in settings_table() and Settings.model_fields[name].description


def test_old_settings_are_not_offered() -> None:
    assert not any(f"| `{variable_name(name)}` |" in settings_table() for name in OLD)


def test_the_help_of_serve_says_what_the_settings_say() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "400", "TERM": "dumb"})
    shown = " ".join(result.output.split())
    flags = [name for name in Settings.model_fields if f"--{name.replace('_', '-')} " in shown]
    assert {"model", "host", "port", "precision", "max_running"} <= set(flags)
    for name in flags:
        assert flag_help(Settings.model_fields[name]) in shown, name
    assert "Legal: 0 … 65535." in shown and "Legal: 0 or 1" not in shown
