"""What training writes is there whole or not at all: a full disk, or a process that dies in the middle, shows
nothing half-written, and the next attempt works."""

import errno
from pathlib import Path
from typing import Any

import pytest
from store_models import write_merges
from transformers import GPT2Config

from model_store.checkpoint import read_checkpoint
from model_store.cli_store import one_line_errors
from model_store.manifest import Draft, read_json_manifest
from model_store.tokenizer import Tokenizer
from model_store.training import export as export_module
from model_store.training.bpe import train_tokenizer
from model_store.training.export import export, export_tokenizer
from model_store.training.lean_gpt2 import LeanGPT2
from model_store.training.report_html import write_report


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def tiny(base: Path, n_layer: int = 1) -> LeanGPT2:
    """A model for the tokenizer in `base`."""
    size = Tokenizer.load(base).vocab_size
    return LeanGPT2(GPT2Config(vocab_size=size, n_embd=16, n_layer=n_layer, n_head=2, n_positions=32))


def test_a_report_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path / "report.html", "before")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path / "report.html", "after")
    assert names(tmp_path) == {"report.html"} and (tmp_path / "report.html").read_text() == "before"


def test_a_tokenizer_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("Tom has a stone. " * 50, encoding="utf-8")
    with monkeypatch.context() as full:
        full.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            train_tokenizer([tmp_path / "a.txt"], tmp_path / "tokenizer", 300)
    assert "tokenizer.json" not in names(tmp_path / "tokenizer")
    assert train_tokenizer([tmp_path / "a.txt"], tmp_path / "tokenizer", 260) == 260
    assert Tokenizer.load(tmp_path / "tokenizer").vocab_size == 260


def test_an_export_that_does_not_come_to_its_end_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_merges(tmp_path / "base")
    model, out = tiny(base), tmp_path / "run" / "model"
    (tmp_path / "run").mkdir()
    export_tokenizer(model, base, out)
    assert not out.exists()
    with monkeypatch.context() as full:
        full.setattr(export_module, "make_golden", full_disk)
        with pytest.raises(OSError, match="No space left"):
            export(model, out, "fp32", Draft())
    assert not names(tmp_path / "run")
    export_tokenizer(model, base, out)
    export(model, out, "fp32", Draft())
    assert names(tmp_path / "run") == {"model"} and {"manifest.json", "vocab.json"} <= names(out)
    assert read_checkpoint(out).num_parameters == sum(weight.numel() for weight in model.parameters())


def test_a_model_stays_until_another_that_is_whole_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_merges(tmp_path / "base")
    out = tmp_path / "model"
    export_tokenizer(tiny(base), base, out)
    export(tiny(base), out, "fp32", Draft(license="the first"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    export_tokenizer(tiny(base, n_layer=2), base, out)
    with monkeypatch.context() as full:
        full.setattr(export_module, "make_golden", full_disk)
        with pytest.raises(OSError, match="No space left"):
            export(tiny(base, n_layer=2), out, "fp32", Draft())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    export_tokenizer(tiny(base, n_layer=2), base, out)
    export(tiny(base, n_layer=2), out, "fp32", Draft(license="the second"))
    assert names(tmp_path) == {"base", "model"}
    assert read_json_manifest(out)["license"] == "the second"
    assert read_checkpoint(out).architecture.n_layer == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("/store/a", None, "/store/.adding-x1/model.safetensors"),
            "the disk is full where /store lies; free",
        ),
        (("/out/tokenizer.json",), "the disk is full where /out lies; free"),
        ((), "the disk is full; free"),
    ],
)
def test_a_full_disk_is_one_line_without_unfinished_names(
    given: tuple[Any, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise OSError(errno.ENOSPC, "No space left on device", *given)
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}") and shown.count("\n") == 1 and ".adding" not in shown
