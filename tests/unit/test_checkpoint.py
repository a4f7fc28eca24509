"""One reader of checkpoints: what it takes, and the one line that names file and cause where it does not."""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from store_models import gpt2_state, write_checkpoint, write_config

from model_store.architecture import read_architecture
from model_store.checkpoint import read_checkpoint
from model_store.errors import StoreError
from model_store.files import open_file

Change = Callable[[Path], object]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 548105171\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


def refusal(folder: Path) -> str:
    """Read what must be refused; give the line without the folder's path."""
    with pytest.raises(StoreError) as caught:
        read_checkpoint(folder)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line
    return line.replace(str(folder), "DIR")


def config(text: str | bytes) -> Change:
    """Replace config.json."""
    return lambda d: (d / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)


def weights(content: bytes) -> Change:
    """Replace the weights' file."""
    return lambda d: (d / "model.safetensors").write_bytes(content)


def header(values: object, data: bytes = b"\0" * 4) -> Change:
    """Replace the weights' file by this header and data."""
    encoded = json.dumps(values).encode()
    return weights(struct.pack("<Q", len(encoded)) + encoded + data)


def instead(make: Callable[[Path], object]) -> Change:
    """Put something else where the weights were."""

    def change(d: Path) -> None:
        (d / "model.safetensors").unlink()
        make(d / "model.safetensors")

    return change


def index(values: object) -> Change:
    """An index in the place of the single file."""
    return instead(lambda path: path.with_suffix(".safetensors.index.json").write_text(json.dumps(values)))


def tensor(begin: int, end: int, *shape: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


BROKEN: dict[str, tuple[Change, str]] = {
    "config missing": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
    "config a list": (config("[]"), "config.json must hold a JSON object, not list"),
    "config UTF-16": (config("{}".encode("utf-16")), "config.json is not UTF-8"),
    "config too deep": (config("[" * 100_000), "config.json is nested too deeply"),
    "config cut off": (config('{"model_type": "gp'), "config.json is not JSON"),
    "config empty": (config(""), "config.json is empty"),
    "config a pointer": (config(POINTER), "config.json is a pointer of git-lfs"),
    "truncated": (
        lambda d: os.truncate(d / "model.safetensors", (d / "model.safetensors").stat().st_size - 100),
        "model.safetensors is broken or incomplete",
    ),
    "empty": (weights(b""), "model.safetensors is empty"),
    "one byte": (weights(b"\x08"), "model.safetensors is broken or incomplete"),
    "header of 2^63": (weights(struct.pack("<Q", 2**63) + b"{}"), "header too large"),
    "header junk": (weights(struct.pack("<Q", 100) + b"\xff" * 100), "invalid UTF-8 in header"),
    "offsets out of range": (header({"a": tensor(100, 104, 1)}), "invalid offset"),
    "offsets overlap": (header({"a": tensor(0, 4, 1), "b": tensor(0, 4, 1)}), "invalid offset"),
    "shape overflows": (header({"a": tensor(0, 4, 2**40, 2**20)}), "overflow"),
    "integers": (
        lambda d: save_file(
            {name: value.to(torch.int8) for name, value in gpt2_state().items()}, d / "model.safetensors"
        ),
        "tensor wte.weight is I8; give float weights",
    ),
    "a folder": (instead(Path.mkdir), "model.safetensors is a folder, not a file"),
    "a FIFO": (instead(os.mkfifo), "model.safetensors is a FIFO, not a file"),
    "a device": (instead(lambda p: p.symlink_to("/dev/zero")), "model.safetensors is a device, not a file"),
    "a dead link": (instead(lambda p: p.symlink_to("gone")), "is a link to a file that is missing"),
    "a pointer": (weights(POINTER.encode()), "model.safetensors is a pointer of git-lfs"),
    "no weights": (instead(lambda path: None), "DIR holds no weights"),
    "a pickle": (
        instead(lambda p: p.with_name("pytorch_model.bin").touch()),
        "convert it once: textgen model import DIR",
    ),
    "TensorFlow": (instead(lambda p: p.with_name("tf_model.h5").touch()), "from_tf=True"),
    "Flax": (instead(lambda p: p.with_name("flax_model.msgpack").touch()), "from_flax=True"),
    "GGUF": (instead(lambda p: p.with_name("gpt2.Q8_0.gguf").touch()), "gguf_file='gpt2.Q8_0.gguf'"),
    "index without map": (index({}), "model.safetensors.index.json is broken: it has no weight_map"),
    "index elsewhere": (index({"weight_map": {"a": "../b.safetensors"}}), "names a file that is no"),
    "index with NUL": (index({"weight_map": {"a": "b\0.safetensors"}}), "names a file that is no"),
    "index of half a character": (index({"weight_map": {"a": "\ud800.safetensors"}}), r"DIR/\ud800.safet"),
    "index of two lines": (index({"weight_map": {"a": "b\n\x1b[31m.safetensors"}}), r"DIR/b\n\x1b[31m."),
    "shard missing": (index({"weight_map": {"a": "b.safetensors"}}), "DIR/b.safetensors is missing"),
    "adapter": (lambda d: (d / "adapter_config.json").write_text("{}"), "holds a PEFT adapter"),
    "names twice": (
        lambda d: save_file({**gpt2_state(), "wte.weight": torch.ones(320, 16)}, d / "model.safetensors"),
        "DIR holds wte.weight twice",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_one_line_that_names_file_and_cause(folder: Path, case: str) -> None:
    change, message = BROKEN[case]
    change(folder)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_norm_epsilon": float("nan")},
        {"layer_norm_epsilon": float("inf")},
        {"n_head": 0},
        {"n_head": 3},
        {"n_positions": 1},
        {"n_positions": 10**9},
        {"vocab_size": 10**12},
        {"n_embd": "16"},
        {"n_layer": True},
        {"tie_word_embeddings": "false"},
        {"scale_attn_weights": 1},
        {"activation_function": "prelu"},
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"transformers_weights": "../model.safetensors"},
        {"architectures": ["GPT2ForSequenceClassification"]},
        {"model_type": "llama"},
    ],
    ids=str,
)
def test_a_config_that_cannot_be_served_is_named(folder: Path, change: dict[str, object]) -> None:
    write_config(folder, **change)
    names = {"n_positions": "wpe.weight", "vocab_size": "wte.weight", "architectures": "architecture"}
    (key,) = change
    assert key in refusal(folder) or names[key] in refusal(folder)


def test_a_million_layers_cost_no_memory(folder: Path) -> None:
    write_config(folder, n_layer=10**6)
    tracemalloc.start()
    message = refusal(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "have no tensor h.2.ln_1.weight" in message and peak < 4 << 20


def test_a_file_of_somebody_else_is_said_to_be_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    (folder / "model.safetensors").chmod(0o600)
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(StoreError, match=r"cannot be read: permission denied \(mode 0600, owner \d+; this"):
        open_file(folder / "model.safetensors")


def test_the_run_of_a_trainer_names_its_last_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "checkpoint-100")
    assert refusal(tmp_path / "run").endswith("name one of its checkpoints, as DIR/checkpoint-100")


# --- what transformers loads is read


def test_general_names_of_sizes_are_read_and_win(folder: Path) -> None:
    expected = read_architecture(folder)
    values = json.loads((folder / "config.json").read_text())
    names = {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    }
    general = {names.get(key, key): value for key, value in values.items()}
    (folder / "config.json").write_text(json.dumps({**general, "n_layer": 7, "num_hidden_layers": 2}))
    assert read_checkpoint(folder).architecture == expected


@pytest.mark.parametrize(
    "change", [{"model_type": None}, {"tie_word_embeddings": None}, {"n_inner": None}, {"n_ctx": 8}], ids=str
)
def test_keys_that_say_nothing_are_not_missed(folder: Path, change: dict[str, object]) -> None:
    expected = read_architecture(folder)
    write_config(folder, **change)
    assert read_checkpoint(folder).architecture == expected


def test_a_single_file_wins_over_a_stale_index(folder: Path) -> None:
    save_file(gpt2_state(), folder / "old.safetensors")
    weight_map = dict.fromkeys(gpt2_state(), "old.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert read_checkpoint(folder).files == (folder / "model.safetensors",)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("prefix", ["", "module.transformer.", "_orig_mod.transformer.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(folder: Path, prefix: str) -> None:
    plain = read_checkpoint(folder).tensors.keys()
    rewritten(folder, lambda state: {prefix + name[12:]: value for name, value in state.items()})
    assert read_checkpoint(folder).tensors.keys() == plain


def test_a_head_alone_is_the_embedding_too(folder: Path) -> None:
    expected = read_checkpoint(folder).num_parameters
    rewritten(folder, lambda state: {"lm_head.weight": state.pop("transformer.wte.weight"), **state})
    checkpoint = read_checkpoint(folder)
    assert checkpoint.tensors["wte.weight"].name == "lm_head.weight"
    assert (checkpoint.architecture.tie_word_embeddings, checkpoint.num_parameters) == (True, expected)


def test_an_equal_head_is_tied_and_another_one_is_not(folder: Path) -> None:
    rewritten(folder, lambda state: {**state, "lm_head.weight": state["transformer.wte.weight"].clone()})
    assert read_checkpoint(folder).architecture.tie_word_embeddings
    rewritten(folder, lambda state: {**state, "lm_head.weight": state["lm_head.weight"].flip(0)})
    checkpoint = read_checkpoint(folder)
    assert not checkpoint.architecture.tie_word_embeddings and "lm_head.weight" in checkpoint.tensors
    assert checkpoint.warnings[0].endswith("the head differs from the embeddings, so it is not tied to them")


def test_the_names_of_foreign_tensors_are_short_and_on_one_line(folder: Path) -> None:
    odd = {"a\n\x1b[31mred": torch.ones(1), "b" * 10_000: torch.ones(1)}
    save_file({**gpt2_state(), **odd}, folder / "model.safetensors")
    [line] = read_checkpoint(folder).warnings
    assert r"a\n\x1b[31mred" in line and line.isprintable() and len(line) < 1000
