"""Turns a trained model into a folder that a store takes: safetensors, config, tokenizer, manifest draft.

Golden prompts are asked for the first time here (`model_store/golden.py`). The store's side is in
`model_store/store.py`.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model_store.golden import make_golden
from model_store.manifest import Draft, write_manifest
from model_store.task_files import with_generate
from model_store.training.errors import InvalidOption

DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt")


def export(model: Any, tokenizer_folder: Path, folder: Path, dtype: str, draft: Draft) -> Draft:
    """Write a model folder with its manifest draft.

    Args:
        model: A GPT-2 in memory; it is converted in place.
        tokenizer_folder: Where its tokenizer's files lie.
        folder: Where to write; made when missing.
        dtype: `bf16`, `fp16` or `fp32`.
        draft: Tasks, data, licence, command; architecture, parameters and golden prompts are filled in here.

    Returns:
        The draft as it was written.

    Raises:
        InvalidOption: The dtype is none of the three.
    """
    if dtype not in DTYPES:
        raise InvalidOption("--dtype", f"must be one of {', '.join(DTYPES)}, not {dtype!r}")
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to("cpu", DTYPES[dtype])
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.use_cache = True
    _save(model, folder)
    for name in _TOKENIZER_FILES:
        if (tokenizer_folder / name).exists() and tokenizer_folder != folder:
            shutil.copyfile(tokenizer_folder / name, folder / name)
    tasks = with_generate(draft.tasks)
    full = replace(
        draft,
        tasks=tasks,
        architecture=_architecture(model.config),
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
    plain.save_pretrained(folder)


def _architecture(config: Any) -> dict[str, Any]:
    names = ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    return {name: getattr(config, name) for name in names}
