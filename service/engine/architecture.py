"""What a GPT-2 checkpoint says about itself, and what of it this engine computes.

Reads `config.json` and refuses, by name, whatever would change the arithmetic in a way the forward pass does
not follow. `model` holds that forward pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACTIVATIONS = (
    "gelu_new",
    "gelu",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
    "tanh",
)


class UnsupportedCheckpoint(ValueError):
    """The checkpoint asks for something this engine does not compute; the message names it."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shape and switches of a GPT-2, named as in transformers' GPT2Config."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: str
    layer_norm_epsilon: float
    scale_attn_weights: bool
    scale_attn_by_inverse_layer_idx: bool
    tie_word_embeddings: bool

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def attention_scales(self) -> list[float]:
        """Factor on the attention scores, one per layer."""
        base = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        inverse = self.scale_attn_by_inverse_layer_idx
        return [base / (layer + 1 if inverse else 1) for layer in range(self.n_layer)]

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values one token takes over all layers."""
        return 2 * self.n_layer * self.n_embd * element_bytes


def read_architecture(folder: Path) -> Architecture:
    """Read and check `config.json`.

    Raises:
        UnsupportedCheckpoint: naming the key, its value and what is supported.
        OSError: the file cannot be read.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _refuse_unsupported(config)
    architecture = Architecture(
        vocab_size=_count(config, "vocab_size", 50257),
        n_positions=_count(config, "n_positions", 1024),
        n_embd=_count(config, "n_embd", 768),
        n_layer=_count(config, "n_layer", 12),
        n_head=_count(config, "n_head", 12),
        n_inner=_count(config, "n_inner", 4 * _count(config, "n_embd", 768)),
        activation_function=config.get("activation_function", "gelu_new"),
        layer_norm_epsilon=_number(config, "layer_norm_epsilon", 1e-5),
        scale_attn_weights=bool(config.get("scale_attn_weights", True)),
        scale_attn_by_inverse_layer_idx=bool(config.get("scale_attn_by_inverse_layer_idx", False)),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", True)),
    )
    if architecture.n_embd % architecture.n_head:
        raise UnsupportedCheckpoint("config.json: n_embd must be a multiple of n_head")
    return architecture


def _count(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedCheckpoint(f"config.json: {key} must be a whole number of at least 1")
    return value


def _number(config: dict[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise UnsupportedCheckpoint(f"config.json: {key} must be a number of at least 0")
    return float(value)


def _refuse_unsupported(config: dict[str, Any]) -> None:
    """Refuse switches that change the arithmetic. reorder_and_upcast_attn does not: scores are float32
    here anyway.
    """
    kind = config.get("model_type")
    if kind != "gpt2":
        raise UnsupportedCheckpoint(f"config.json: model_type is {kind!r}; this service serves 'gpt2'")
    if config.get("add_cross_attention"):
        raise UnsupportedCheckpoint("config.json: add_cross_attention is not supported (decoder-only GPT-2)")
    if config.get("quantization_config"):
        raise UnsupportedCheckpoint("config.json: quantization_config is not supported; give float weights")
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UnsupportedCheckpoint(
            f"config.json: activation_function {activation!r} is none of {', '.join(ACTIVATIONS)}"
        )
