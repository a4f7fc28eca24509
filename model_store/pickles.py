"""Turns the pickles of old checkpoints into safetensors, once, at import. Imports torch.

They are read with torch's `weights_only` loader, which runs no code of theirs.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model_store.checkpoint import BUFFERS, INDEX, PICKLE, PICKLE_INDEX, SINGLE, indexed_files
from model_store.errors import UnsupportedCheckpoint
from model_store.files import open_file


def pickle_files(folder: Path) -> list[Path]:
    """The pickles that are a checkpoint's weights; none where it has none, or safetensors, which win.

    Raises:
        UnreadableFile, UnsupportedCheckpoint: The index is broken.
    """
    names = (SINGLE, INDEX, PICKLE, PICKLE_INDEX)
    name = next((name for name in names if os.path.lexists(folder / name)), SINGLE)
    if name == PICKLE:
        return [folder / name]
    return indexed_files(folder / name, ".bin") if name == PICKLE_INDEX else []


def convert_pickles(files: list[Path], target: Path) -> None:
    """Write the tensors of pickles into one safetensors file.

    Raises:
        UnreadableFile: A file is missing or may not be read.
        UnsupportedCheckpoint: A file is broken or holds more than tensors.
    """
    state: dict[str, torch.Tensor] = {}
    for path in files:
        state |= _load(path)
    embeddings = {tensor.data_ptr() for name, tensor in state.items() if name.endswith("wte.weight")}
    kept = {
        name: tensor.clone().contiguous()  # safetensors refuses tensors that share their memory
        for name, tensor in state.items()
        if not name.endswith(BUFFERS)
        and not (name.endswith("lm_head.weight") and tensor.data_ptr() in embeddings)
    }
    save_file(kept, target, {"format": "pt"})


def _load(path: Path) -> dict[str, Any]:
    with open_file(path) as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its text advises to run the file's code
            raise UnsupportedCheckpoint(f"{path} was not loaded: it holds more than tensors") from error
        except Exception as error:  # zipfile's and torch's own, by what is wrong with the file
            reason = str(error).strip().split("\n")[0][:200]
            raise UnsupportedCheckpoint(
                f"{path} was not loaded: it is broken or holds more than tensors ({reason})"
            ) from error
    if not isinstance(state, dict) or not all(map(_is_plain, state, state.values())):
        raise UnsupportedCheckpoint(f"{path} is not a plain dictionary of tensors")
    return state


def _is_plain(name: object, value: object) -> bool:
    """Whether safetensors can hold it."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )
