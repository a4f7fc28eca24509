"""Reads a checkpoint's tensors, float32 and by one set of names, whatever prefix or shards they came in.

Safetensors only: a pickle checkpoint is converted once, by `textgen model import`. `model` builds on this.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from service.engine.architecture import Architecture, UnsupportedCheckpoint

_IGNORED = (".attn.bias", ".attn.masked_bias")  # causal masks that old checkpoints carry as buffers


def read_weights(folder: Path, architecture: Architecture) -> dict[str, Tensor]:
    """Read all tensors of a GPT-2, names without the `transformer.` prefix.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and its shards.
        architecture: what config.json promised; shapes are checked against it.

    Returns:
        name -> float32 tensor on the CPU; `lm_head.weight` only when the head is not tied.

    Raises:
        UnsupportedCheckpoint: no safetensors, or a tensor is missing, unknown or of the wrong shape.
    """
    weights = {}
    for file in _shards(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if not name.endswith(_IGNORED):
                    weights[name.removeprefix("transformer.")] = tensors.get_tensor(name).float()
    if architecture.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    _check_shapes(weights, _expected_shapes(architecture))
    return weights


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / Path(name).name for name in sorted(set(names))]
    single = folder / "model.safetensors"
    if not single.exists():
        raise UnsupportedCheckpoint(
            f"{folder.name}: no model.safetensors; convert a pickle checkpoint with `textgen model import`"
        )
    return [single]


def _expected_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    c, inner = a.n_embd, a.n_inner
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (a.vocab_size, c),
        "wpe.weight": (a.n_positions, c),
        "ln_f.weight": (c,),
        "ln_f.bias": (c,),
    }
    for i in range(a.n_layer):
        for name in (
            "ln_1.weight",
            "ln_1.bias",
            "ln_2.weight",
            "ln_2.bias",
            "attn.c_proj.bias",
            "mlp.c_proj.bias",
        ):
            shapes[f"h.{i}.{name}"] = (c,)
        shapes[f"h.{i}.attn.c_attn.weight"], shapes[f"h.{i}.attn.c_attn.bias"] = (c, 3 * c), (3 * c,)
        shapes[f"h.{i}.attn.c_proj.weight"] = (c, c)
        shapes[f"h.{i}.mlp.c_fc.weight"], shapes[f"h.{i}.mlp.c_fc.bias"] = (c, inner), (inner,)
        shapes[f"h.{i}.mlp.c_proj.weight"] = (inner, c)
    if not a.tie_word_embeddings:
        shapes["lm_head.weight"] = (a.vocab_size, c)
    return shapes


def _check_shapes(weights: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing:
        raise UnsupportedCheckpoint(f"the checkpoint lacks {missing[0]} and {len(missing) - 1} more tensors")
    if unknown:
        raise UnsupportedCheckpoint(f"the checkpoint holds {unknown[0]}, which GPT-2 does not have")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise UnsupportedCheckpoint(f"{name} is {tuple(weights[name].shape)}, config.json says {shape}")
        if not all(map(torch.isfinite, torch.aminmax(weights[name]))):  # thirty times faster than each value
            raise UnsupportedCheckpoint(f"{name} holds values that are not finite")
