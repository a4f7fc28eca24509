"""The weights of a checkpoint: found, checked against its config, and written as safetensors.

Pickles are read with torch's `weights_only` loader, which runs no code of theirs. Nothing is computed with
the weights here. Read next: `model_store/importer.py`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.errors import ImportRefused
from model_store.manifest import is_inside

Shapes = dict[str, tuple[int, ...]]

_SAFE = "model.safetensors"
_SAFE_INDEX = "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"
_PICKLE_INDEX = "pytorch_model.bin.index.json"
_FOREIGN = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "model.onnx")
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, which old checkpoints carry along
_BLOCK_WEIGHTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def write_weights(source: Path, target: Path, config: Mapping[str, Any]) -> int:
    """Bring a checkpoint's weights into a folder as safetensors.

    Args:
        source: A Hugging Face folder.
        target: Where the safetensors files go.
        config: The checkpoint's config.json.

    Returns:
        How many parameters there are; tied ones once.

    Raises:
        ImportRefused: No weights, weights of another framework, a pickle with more than tensors, a broken or
            missing file, or tensors that are not those of a GPT-2 of this config.
    """
    if (source / _SAFE).exists():
        shutil.copyfile(source_file(source, _SAFE), target / _SAFE)
        names = [_SAFE]
    elif (source / _SAFE_INDEX).exists():
        names = _shards(source, _SAFE_INDEX)
        for name in [*names, _SAFE_INDEX]:
            shutil.copyfile(source_file(source, name), target / name)
    else:
        _convert(source, target, is_tied=bool(config.get("tie_word_embeddings", True)))
        names = [_SAFE]
    shapes = read_shapes(target, names)
    _check_shapes(shapes, config)
    return _count(shapes, is_tied=bool(config.get("tie_word_embeddings", True)))


def source_file(folder: Path, name: str) -> Path:
    """Give the real path of a checkpoint's file.

    Raises:
        ImportRefused: It is missing, or a link that leads out of the checkpoint. (The hub's cache links to
            the folder `blobs` beside its snapshots; that is within.)
    """
    path = (folder / name).resolve()
    within = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        within.append(folder.resolve().parent.parent / "blobs")
    if not any(path.is_relative_to(root) for root in within):
        raise ImportRefused(f"{name} is a link that leads out of the checkpoint's folder")
    if not path.is_file():
        raise ImportRefused(f"{name} is missing")
    return path


def config_size(config: Mapping[str, Any], key: str, default: int) -> int:
    """Read a size from config.json; a missing or null one is GPT-2's default.

    Raises:
        ImportRefused: It is not a positive integer.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise ImportRefused(f"config.json: {key} must be a positive integer")
    return value


def read_shapes(folder: Path, names: list[str]) -> Shapes:
    """Read the tensors' names and shapes from the headers of safetensors files.

    Raises:
        ImportRefused: Names the file that is broken.
    """
    from safetensors import SafetensorError, safe_open

    shapes: Shapes = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="np") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no iterator
        except (SafetensorError, OSError) as error:
            raise ImportRefused(f"{name} is broken: {error}") from error
    return shapes


def _shards(source: Path, index: str) -> list[str]:
    """Give the files that an index names."""
    try:
        values = json.loads(source_file(source, index).read_text(encoding="utf-8"))
        names = sorted(set(values["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ImportRefused(f"{index} is broken: no legal weight_map") from error
    for name in names:
        if not isinstance(name, str) or not is_inside(name) or "/" in name:
            raise ImportRefused(f"{index} names a file outside of the checkpoint: {name!r}")
        if index == _SAFE_INDEX and not name.endswith(".safetensors"):
            raise ImportRefused(f"{index} names a file that is not safetensors: {name!r}")
    return names


def _convert(source: Path, target: Path, is_tied: bool) -> None:
    """Turn pickles into one safetensors file."""
    from safetensors.torch import save_file

    if (source / _PICKLE).exists():
        names = [_PICKLE]
    elif (source / _PICKLE_INDEX).exists():
        names = _shards(source, _PICKLE_INDEX)
    else:
        raise ImportRefused(_nothing(source))
    state: dict[str, Any] = {}
    for name in names:
        state |= _load_pickle(source_file(source, name))
    state = {key: value for key, value in state.items() if not key.endswith(_BUFFERS)}
    if is_tied:
        state.pop("lm_head.weight", None)
    save_file(
        {key: value.clone().contiguous() for key, value in state.items()}, target / _SAFE, {"format": "pt"}
    )


def _load_pickle(path: Path) -> dict[str, Any]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zipfile's and torch's own, by what is wrong with the file
        reason = str(error).strip().split("\n")[0][:200]
        raise ImportRefused(
            f"{path.name} was not loaded: it is broken or holds more than tensors ({reason})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ImportRefused(f"{path.name} is not a plain dictionary of tensors")
    return state


def _nothing(source: Path) -> str:
    foreign = [name for name in _FOREIGN if (source / name).exists()]
    if foreign:
        return f"the weights are in {foreign[0]}; export them as safetensors with transformers first"
    return f"no weights: none of {_SAFE}, {_SAFE_INDEX}, {_PICKLE}, {_PICKLE_INDEX}"


def _check_shapes(shapes: Shapes, config: Mapping[str, Any]) -> None:
    """Refuse tensors that are not those of the config, before transformers fills gaps with random numbers."""
    plain = {key.removeprefix("transformer."): shape for key, shape in shapes.items()}
    for name, expected in _expected(config).items():
        if name not in plain:
            raise ImportRefused(f"the weights have no tensor {name}")
        if plain[name] != expected:
            raise ImportRefused(f"tensor {name} has the shape {plain[name]}; config.json makes it {expected}")


def _expected(config: Mapping[str, Any]) -> Shapes:
    width, layers = config_size(config, "n_embd", 768), config_size(config, "n_layer", 12)
    inner = config_size(config, "n_inner", 4 * width)
    vocab, positions = config_size(config, "vocab_size", 50257), config_size(config, "n_positions", 1024)
    sizes = dict(zip(_BLOCK_WEIGHTS, (width, 3 * width, width, width, inner, width), strict=True))
    rows = {"mlp.c_proj": inner}
    shapes: Shapes = {"wte.weight": (vocab, width), "wpe.weight": (positions, width)}
    for layer in range(layers):
        for part, size in sizes.items():
            is_norm = part.startswith("ln")
            shapes[f"h.{layer}.{part}.weight"] = (size,) if is_norm else (rows.get(part, width), size)
            shapes[f"h.{layer}.{part}.bias"] = (size,)
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    is_tied = config.get("tie_word_embeddings", True)
    return shapes if is_tied else {**shapes, "lm_head.weight": (vocab, width)}


def _count(shapes: Shapes, is_tied: bool) -> int:
    total = 0
    for name, shape in shapes.items():
        if name.endswith(_BUFFERS) or (is_tied and name == "lm_head.weight"):
            continue
        size = 1
        for length in shape:
            size *= length
        total += size
    return total
