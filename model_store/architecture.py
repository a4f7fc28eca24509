"""What the config.json of a GPT-2 says: the only reader of that file.

Reads it as transformers 5 does and refuses, by name, whatever would change the arithmetic in a way the
forward pass does not follow. The tensors themselves are read in `model_store/checkpoint.py`. No torch here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.errors import UnsupportedCheckpoint
from model_store.files import read_json

# transformers' names of functions without parameters of their own
ACTIVATIONS = (
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu"),
    *("relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"),
)
# transformers' `attribute_map`; where both names are given, the general one wins there and here
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_MIN_POSITIONS = 8

Shape = tuple[int, ...]


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

    def tensor_shapes(self) -> Iterator[tuple[str, Shape]]:
        """Give (name, shape) of each tensor, without the prefix `transformer.`; a tied head is left out.

        One by one, since a config may claim a million layers.
        """
        c, inner = self.n_embd, self.n_inner
        yield from {
            "wte.weight": (self.vocab_size, c),
            "wpe.weight": (self.n_positions, c),
            "ln_f.weight": (c,),
            "ln_f.bias": (c,),
        }.items()
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, c)
        for i in range(self.n_layer):
            for norm in ("ln_1", "ln_2"):
                yield from ((f"h.{i}.{norm}.weight", (c,)), (f"h.{i}.{norm}.bias", (c,)))
            for linear, rows, columns in (
                ("attn.c_attn", c, 3 * c),
                ("attn.c_proj", c, c),
                ("mlp.c_fc", c, inner),
                ("mlp.c_proj", inner, c),
            ):
                yield f"h.{i}.{linear}.weight", (rows, columns)
                yield f"h.{i}.{linear}.bias", (columns,)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, its keys by GPT-2's own names; keys with null, which say nothing, are left out.

    Raises:
        UnreadableFile: The file is missing or broken.
        UnsupportedCheckpoint: It is not that of a GPT-2 language model; names the key and its value.
    """
    path = folder / "config.json"
    values = {key: value for key, value in read_json(path).items() if value is not None}
    config = {key: value for key, value in values.items() if key not in _ALIASES}
    config |= {name: values[alias] for alias, name in _ALIASES.items() if alias in values}
    try:
        _refuse_others(config)
        read_switches(config)
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"{path}: {error}") from error
    return {**config, "model_type": "gpt2"}


def read_architecture(folder: Path) -> Architecture:
    """Read and check config.json; whether the head is tied is only what that file says of it.

    Raises:
        UnreadableFile, UnsupportedCheckpoint: As `read_config`.
    """
    return read_switches(read_config(folder))


def read_switches(config: Mapping[str, Any]) -> Architecture:
    """Read what decides the arithmetic, as transformers would default it.

    Raises:
        UnsupportedCheckpoint: Names the key and what is legal.
    """
    n_embd = _count(config, "n_embd", 768)
    activation, epsilon = (
        config.get("activation_function", "gelu_new"),
        config.get("layer_norm_epsilon", 1e-5),
    )
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        legal = ", ".join(ACTIVATIONS)
        raise UnsupportedCheckpoint(f"activation_function {activation!r:.60} is none of {legal}")
    if type(epsilon) not in (int, float) or not 0 <= epsilon < math.inf:
        legal = "a finite number of at least 0"
        raise UnsupportedCheckpoint(f"layer_norm_epsilon must be {legal}, not {epsilon!r:.60}")
    architecture = Architecture(
        vocab_size=_count(config, "vocab_size", 50257),
        n_positions=_count(config, "n_positions", 1024, _MIN_POSITIONS),
        n_embd=n_embd,
        n_layer=_count(config, "n_layer", 12),
        n_head=_count(config, "n_head", 12),
        n_inner=_count(config, "n_inner", 4 * n_embd),
        activation_function=activation,
        layer_norm_epsilon=float(epsilon),
        scale_attn_weights=_flag(config, "scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=_flag(config, "scale_attn_by_inverse_layer_idx", False),
        tie_word_embeddings=_flag(config, "tie_word_embeddings", True),
    )
    if n_embd % architecture.n_head:
        raise UnsupportedCheckpoint(
            f"n_embd must be a multiple of n_head, which {n_embd} is not of {architecture.n_head}"
        )
    return architecture


def _refuse_others(config: Mapping[str, Any]) -> None:
    """Refuse other models and switches that change the arithmetic.

    `reorder_and_upcast_attn` does not: scores are float32 here anyway.
    """
    names = config.get("architectures", [])
    names = names if isinstance(names, list) else [names]
    is_gpt2 = any(str(name).startswith("GPT2") for name in names)
    if config.get("model_type", "gpt2" if is_gpt2 else None) != "gpt2":
        raise UnsupportedCheckpoint(
            f"model_type {config.get('model_type')!r} is not supported; only 'gpt2' is"
        )
    for name in names:
        if not str(name).startswith("GPT2") or str(name).startswith("GPT2For"):  # these are classifiers
            raise UnsupportedCheckpoint(f"architecture {name!r} is not supported; only GPT2LMHeadModel is")
    for key in ("quantization_config", "auto_map", "add_cross_attention"):
        if config.get(key):
            raise UnsupportedCheckpoint(f"{key} is not supported")


def _count(config: Mapping[str, Any], key: str, default: int, low: int = 1) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < low:
        raise UnsupportedCheckpoint(f"{key} must be a whole number of at least {low}, not {value!r:.60}")
    return value


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if type(value) is not bool:
        raise UnsupportedCheckpoint(f"{key} must be true or false, not {value!r:.60}")
    return value
