"""A Hugging Face folder or hub id becomes a store entry: checked, converted, and with golden prompts.

Anything that is not a GPT-2 language model with a tokenizer that can be streamed is refused by name, before
the store changes. Read next: `model_store/checkpoint.py` (weights), `model_store/golden.py`.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_store.checkpoint import config_size, source_file, write_weights
from model_store.entry import ModelEntry
from model_store.errors import ImportRefused
from model_store.manifest import MANIFEST, Draft, GoldenPrompt, parse_draft, read_json_manifest
from model_store.store import Store
from model_store.task import Task
from model_store.task_files import with_generate
from model_store.tokenizer import Tokenizer

MakeGolden = Callable[[Path, Mapping[str, Task]], tuple[GoldenPrompt, ...]]

_ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model")
_SHOWN = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "activation_function")
_KEPT = (
    "config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json"
    " added_tokens.json vocab.json merges.txt vocab.txt spiece.model tokenizer.model README.md LICENSE"
    " LICENSE.txt LICENSE.md loss.csv loss.png"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a person says about a checkpoint at import; empty: what its own manifest.json says, if any."""

    tasks: Mapping[str, Task] | None = None
    license: str = ""
    data: tuple[str, ...] = ()
    command: str = ""


def import_model(
    store: Store,
    source: str,
    name: str = "",
    version: str = "",
    origin: Origin | None = None,
    make_golden: MakeGolden | None = None,
) -> ModelEntry:
    """Add a checkpoint to the store. It is not active afterwards.

    Args:
        store: Where it goes.
        source: A folder, or a hub id (`hf:` before it is allowed).
        name: Of the model; "" for the folder's or the id's last part.
        version: "" for the next number.
        origin: What is known about it.
        make_golden: Makes the golden prompts; None for transformers, greedily.

    Raises:
        ImportRefused: Says what the checkpoint is or lacks.
        StoreError: The store refuses (name, version), the tokenizer or the manifest is wrong.
    """
    folder = find_source(source)
    config = read_config(folder)
    make = make_golden or _transformers_golden

    def fill(target: Path) -> Draft:
        return _fill(folder, target, config, origin or Origin(), make)

    return store.add(name or _name_from(source), fill, version)


def find_source(source: str) -> Path:
    """Give the checkpoint's folder; fetch it when `source` is a hub id.

    Raises:
        ImportRefused: There is no such folder, and it is no hub id or cannot be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    hub_id = source.removeprefix("hf:")
    if source.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?", hub_id):
        raise ImportRefused(f"there is no folder {source}")
    from model_store.hub import download

    return download(hub_id)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json and refuse what is not a GPT-2 language model.

    Raises:
        ImportRefused: Names the architecture or the setting.
    """
    try:
        config = json.loads(source_file(folder, "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ImportRefused(f"config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ImportRefused("config.json must hold a JSON object")
    names = config.get("architectures") or []
    if config.get("model_type", "gpt2") != "gpt2" or ("model_type" not in config and not names):
        raise ImportRefused(f"model type {config.get('model_type')!r} is not supported; only 'gpt2' is")
    for architecture in names:
        if architecture not in _ARCHITECTURES:
            raise ImportRefused(f"architecture {architecture!r} is not supported; only GPT2LMHeadModel is")
    for key in ("quantization_config", "auto_map", "add_cross_attention"):
        if config.get(key):
            raise ImportRefused(f"config.json: {key} is not supported")
    return config


def _fill(source: Path, target: Path, config: dict[str, Any], origin: Origin, make: MakeGolden) -> Draft:
    """Write the entry's files and say what it is."""
    for name in _KEPT.split():
        if (source / name).exists() or (source / name).is_symlink():
            shutil.copyfile(source_file(source, name), target / name)
    parameters = write_weights(source, target, config)
    tokenizer = Tokenizer.load(target)
    _check_vocabulary(tokenizer, config)
    if not any((target / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        tokenizer.save(target)  # converted by transformers once, and not at every start
    draft = _read_draft(source)
    tasks = with_generate(origin.tasks) if origin.tasks is not None else draft.tasks
    return replace(
        draft,
        tasks=tasks,
        architecture={"type": "gpt2", **{key: config[key] for key in _SHOWN if key in config}},
        parameters=parameters,
        license=origin.license or draft.license,
        data=origin.data or draft.data,
        command=draft.command or origin.command,
        golden=make(target, tasks),
    )


def _read_draft(source: Path) -> Draft:
    """What the checkpoint's own manifest.json says; nothing when it has none."""
    return parse_draft(read_json_manifest(source)) if (source / MANIFEST).is_file() else Draft()


def _check_vocabulary(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    vocab_size = config_size(config, "vocab_size", 50257)
    if tokenizer.vocab_size > vocab_size:
        raise ImportRefused(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but config.json's vocab_size is {vocab_size}"
        )


def _name_from(source: str) -> str:
    """Make a legal name of a folder's or hub id's last part."""
    last = Path(source.removeprefix("hf:").partition("@")[0]).expanduser().resolve().name
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")[:64]
    return name or "model"


def _transformers_golden(folder: Path, tasks: Mapping[str, Task]) -> tuple[GoldenPrompt, ...]:
    from model_store.golden import make_golden

    return make_golden(folder, tasks)
