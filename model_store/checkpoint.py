"""The tensors of a checkpoint: found as transformers 5 finds them, and checked against its config.json.

`read_checkpoint` reads headers only. Store, importer, trainer and engine all call it, so that a model that is
active can be served. The values are read in `model_store/weights.py`; pickles become safetensors at import.
"""

import fnmatch
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from model_store.architecture import Architecture, Shape, read_config, read_switches
from model_store.errors import UnsupportedCheckpoint, one_line
from model_store.files import open_file, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"

# what torch.compile, DataParallel and the language model's class put before a tensor's name
_PREFIXES = ("_orig_mod.", "module.", "transformer.")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, which old checkpoints carry along
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_WTE, _HEAD = "wte.weight", "lm_head.weight"
# weights of others: a file's name, what reads it still, and the option for that
_FOREIGN = (
    ("tf_model.h5", "transformers 4", "from_tf=True"),
    ("flax_model.msgpack", "transformers 4", "from_flax=True"),
    ("*.gguf", "transformers and gguf", "gguf_file='{}'"),
)
_ENDINGS = (".safetensors", ".safetensors.index.json")
_PIECE = 1 << 24  # bytes compared at a time
_NUM_NAMED = 3  # foreign tensors that a warning names


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies.

    Args:
        file: A safetensors file.
        name: What it is called there.
        dtype: As safetensors calls it.
        shape: Of the tensor.
        start: Of its bytes in the file.
        end: After its last byte.
    """

    file: Path
    name: str
    dtype: str
    shape: Shape
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose config and tensors fit together.

    Args:
        folder: In Hugging Face format.
        config: config.json by GPT-2's own names; `tie_word_embeddings` says what the tensors say.
        architecture: What the config says of the arithmetic.
        tensors: By GPT-2's names, without prefix; exactly those of the architecture.
        files: Those of the weights, the index among them.
        warnings: Lines for a log: what the files hold that is not used.
    """

    folder: Path
    config: Mapping[str, Any]
    architecture: Architecture
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """How many numbers were trained; tied ones once."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the config and the tensors' names and shapes.

    Raises:
        UnreadableFile: A file is missing, broken or may not be read; names it and the cause.
        UnsupportedCheckpoint: It is not a GPT-2 that can be served, or tensors are missing or do not fit.
    """
    require_config(folder)
    config = read_config(folder)
    files = _weight_files(folder, config.get("transformers_weights"))
    stored = _by_name(folder, [file for file in files if file.suffix != ".json"])
    is_tied, warnings = _tie(stored, read_switches(config).tie_word_embeddings)
    config["tie_word_embeddings"] = is_tied
    architecture = read_switches(config)
    tensors: dict[str, StoredTensor] = {}
    for name, shape in architecture.tensor_shapes():
        if name not in stored:
            is_adapter = any("lora_" in other or ".base_layer." in other for other in stored)
            hint = "; they are those of an adapter: merge it first (merge_and_unload)" if is_adapter else ""
            raise UnsupportedCheckpoint(f"the weights in {folder} have no tensor {name}{hint}")
        has = tensors[name] = stored[name]
        if has.shape != shape:
            wanted = f"has the shape {has.shape}; config.json makes it {shape}"
            raise UnsupportedCheckpoint(f"{has.file}: tensor {name} {wanted}")
        if has.dtype not in _FLOATS:
            raise UnsupportedCheckpoint(f"{has.file}: tensor {name} is {has.dtype}; give float weights")
    foreign = sorted(stored.keys() - tensors.keys())
    if foreign:
        more = f" and {len(foreign) - _NUM_NAMED} more" if len(foreign) > _NUM_NAMED else ""
        names = ", ".join(f"{one_line(name):.60}" for name in foreign[:_NUM_NAMED]) + more
        warnings.append(f"{folder}: not used, since this GPT-2 has no such tensor: {names}")
    return Checkpoint(folder, config, architecture, tensors, tuple(files), tuple(warnings))


def require_config(folder: Path) -> None:
    """Refuse a folder that is no model in Hugging Face format, and say what it is.

    Raises:
        UnsupportedCheckpoint: A PEFT adapter, a run of transformers' Trainer, or there is no config.json.
    """
    if (folder / "adapter_config.json").exists():
        raise UnsupportedCheckpoint(
            f"{folder} holds a PEFT adapter, not a whole model; "
            f"textgen model import {folder} merges it onto its base"
        )
    if (folder / "config.json").exists():
        return
    runs = sorted(folder.glob("checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
    if runs:
        raise UnsupportedCheckpoint(f"{folder} is a run; name one of its checkpoints, as {runs[-1].parent}")
    if any(folder.glob("*.gguf")):
        raise UnsupportedCheckpoint(_no_weights(folder))
    raise UnsupportedCheckpoint(f"{folder / 'config.json'} is missing: not a model in Hugging Face format")


def _weight_files(folder: Path, named: object) -> list[Path]:
    """The files of the weights: the one that config.json names, else the single one, which wins over an index
    beside it, else the index and its files.
    """
    name = named or next((name for name in (SINGLE, INDEX) if os.path.lexists(folder / name)), None)
    if name is None:
        raise UnsupportedCheckpoint(_no_weights(folder))
    if not isinstance(name, str) or "/" in name or not name.endswith(_ENDINGS):
        raise UnsupportedCheckpoint(
            f"{folder}/config.json: transformers_weights must name a file of the folder"
        )
    path = folder / name
    return [path, *indexed_files(path, ".safetensors")] if path.suffix == ".json" else [path]


def indexed_files(index: Path, suffix: str) -> list[Path]:
    """Give the files that an index names, in order.

    Raises:
        UnreadableFile, UnsupportedCheckpoint: The index is broken or names files elsewhere.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedCheckpoint(f"{index} is broken: it has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or not name.endswith(suffix) or set("/\\\0") & set(name):
            raise UnsupportedCheckpoint(f"{index} names a file that is no {suffix} file beside it: {name!r}")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def _by_name(folder: Path, files: list[Path]) -> dict[str, StoredTensor]:
    """All tensors but the causal masks, by their names without prefix."""
    tensors: dict[str, StoredTensor] = {}
    for tensor in (tensor for file in files for tensor in _read_header(file)):
        name = tensor.name
        while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
            name = name.removeprefix(prefix)
        if name.endswith(BUFFERS):
            continue
        if name in tensors:
            raise UnsupportedCheckpoint(
                f"{folder} holds {name} twice: as {tensors[name].name} in {tensors[name].file.name} and as "
                f"{tensor.name} in {tensor.file.name}"
            )
        tensors[name] = tensor
    return tensors


def _read_header(path: Path) -> Iterator[StoredTensor]:
    """The tensors of a safetensors file; the library checks the header."""
    with open_file(path) as file:
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UnsupportedCheckpoint(f"{path} is broken or incomplete: {error}") from error
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    for name, values in header.items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in values["data_offsets"])
            yield StoredTensor(path, name, values["dtype"], tuple(values["shape"]), start, end)


def _tie(stored: dict[str, StoredTensor], is_tied: bool) -> tuple[bool, list[str]]:
    """Say whether the head is the embedding, as transformers 5 decides it.

    Where both are there and differ, they are not tied, whatever the config says; where only the head is
    there, it is both.
    """
    if not is_tied or _HEAD not in stored:
        return is_tied, []
    if _WTE not in stored:
        stored[_WTE] = stored.pop(_HEAD)
    elif _are_equal(stored[_WTE], stored[_HEAD]):
        del stored[_HEAD]
    else:
        file = stored[_HEAD].file
        return False, [f"{file}: the head differs from the embeddings, so it is not tied to them"]
    return True, []


def _are_equal(a: StoredTensor, b: StoredTensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with a.file.open("rb") as file_a, b.file.open("rb") as file_b:
        file_a.seek(a.start)
        file_b.seek(b.start)
        sizes = [*[_PIECE] * ((a.end - a.start) // _PIECE), (a.end - a.start) % _PIECE]
        return all(file_a.read(size) == file_b.read(size) for size in sizes)


def _no_weights(folder: Path) -> str:
    """What to do where there are no safetensors."""
    names = sorted(path.name for path in folder.iterdir())
    if PICKLE in names or PICKLE_INDEX in names:
        return f"{folder} holds a pickle; convert it once: textgen model import {folder}"
    for pattern, library, option in _FOREIGN:
        for name in fnmatch.filter(names, pattern):
            way = f"GPT2LMHeadModel.from_pretrained({str(folder)!r}, {option.format(name)})"
            return (
                f"the weights in {folder} are in {name}; make safetensors with {library}: "
                f"{way}.save_pretrained('out')"
            )
    if onnx := fnmatch.filter(names, "*.onnx"):
        return f"the weights in {folder} are in {onnx[0]}; give the checkpoint that it was made of"
    return f"{folder} holds no weights: none of {SINGLE}, {INDEX}, {PICKLE}, {PICKLE_INDEX}"
