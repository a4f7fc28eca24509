"""Turns a trained model into a folder that a store takes: safetensors, config, tokenizer, manifest draft.

It is filled beside its place, the tokenizer before the first step and the weights after the last, and put
there when it is whole. Golden prompts are asked for the first time here (`model_store/golden.py`). The
store's side is in `model_store/store.py`.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model_store.atomic import replace_folder, restore_folder
from model_store.entry import sync_files
from model_store.golden import make_golden
from model_store.manifest import Draft, write_manifest
from model_store.task_files import with_generate
from model_store.tokenizer import copy_tokenizer
from model_store.training.errors import InvalidOption

DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
_GENERATION = "generation_config.json"


def export_tokenizer(model: Any, source: Path, folder: Path) -> None:
    """Write everything of a model folder but the weights beside its place, before training's first step.

    Args:
        model: A GPT-2 in memory.
        source: Where the tokenizer that it is trained with lies, and maybe a generation_config.json.
        folder: The place; it stays as it is.

    Raises:
        TokenizerError: What was written is not the tokenizer in use.
    """
    unfinished = _unfinished(folder)
    restore_folder(folder)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir(parents=True)
    model.config.save_pretrained(unfinished)
    if (source / _GENERATION).is_file():
        shutil.copyfile(source / _GENERATION, unfinished / _GENERATION)
    copy_tokenizer(source, unfinished, model.config.vocab_size)


def export(model: Any, folder: Path, dtype: str, draft: Draft) -> Draft:
    """Write the weights of a model, and the manifest draft, beside its tokenizer: all of it or nothing.

    Args:
        model: A GPT-2 in memory; it is converted in place.
        folder: As given to `export_tokenizer`; what was there before is replaced at once.
        dtype: `bf16`, `fp16` or `fp32`.
        draft: Tasks, data, licence, command; architecture, parameters and golden prompts are filled in here.

    Returns:
        The draft as it was written.

    Raises:
        InvalidOption: The dtype is none of the three.
    """
    if dtype not in DTYPES:
        raise InvalidOption("--dtype", f"must be one of {', '.join(DTYPES)}, not {dtype!r}")
    model = model.to("cpu", DTYPES[dtype])
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.use_cache = True
    unfinished = _unfinished(folder)
    try:
        full = _filled(model, unfinished, draft)
        sync_files(unfinished)
        replace_folder(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return full


def _unfinished(folder: Path) -> Path:
    """Where a model folder is filled."""
    return folder.with_name(f".{folder.name}.unfinished")


def _filled(model: Any, folder: Path, draft: Draft) -> Draft:
    """Write weights and manifest into a folder with the tokenizer; give the draft as it was written."""
    _save(model, folder)
    tasks = with_generate(draft.tasks)
    shown = ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    full = replace(
        draft,
        tasks=tasks,
        architecture={name: getattr(model.config, name) for name in shown},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        golden=make_golden(folder, tasks),
    )
    write_manifest(folder, full.to_dict())
    return full


def _save(model: Any, folder: Path) -> None:
    """Write config and safetensors under the class that the architecture is known by."""
    from transformers import GPT2LMHeadModel

    plain = GPT2LMHeadModel(model.config)
    plain.to(model.dtype)
    plain.load_state_dict(model.state_dict())
    kept = (folder / _GENERATION).read_bytes() if (folder / _GENERATION).exists() else None
    plain.save_pretrained(folder)
    if kept is not None:
        (folder / _GENERATION).write_bytes(kept)
