"""How much room a run takes on disk, compared with what is free before the first step; see `pipeline.py`."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_store.training.errors import DiskFull
from model_store.training.train_options import TrainOptions

_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
_FIXED = 4 << 20  # the tokenizer, the curve and its picture, states of schedulers


def require_room(out: Path, model: Any, options: TrainOptions, steps: int, dtype: str) -> None:
    """Refuse a run whose checkpoints and model do not fit on the disk.

    Args:
        out: The run's folder; checkpoints that lie in it already are taken into account.
        model: What is trained, before adapters.
        options: With nothing left to choose.
        steps: Optimizer steps of the run.
        dtype: Of the exported weights.

    Raises:
        DiskFull: Gives both figures.
    """
    num_weights = sum(weight.numel() for weight in model.parameters())
    one = checkpoint_bytes(model, options)
    # one is written before the oldest is deleted; the last step leaves one, too
    count = min(options.keep + 1, math.ceil(steps / options.save_every))
    exported = num_weights * _BYTES.get(dtype, 4)
    there = sum(path.stat().st_size for path in (out / "checkpoints").rglob("*") if path.is_file())
    needed = max(0, count * one - there) + exported + _FIXED
    free = shutil.disk_usage(out).free
    if free < needed:
        raise DiskFull(
            out,
            f"{free / 1e6:,.0f} MB are free, and the run needs {needed / 1e6:,.0f} MB: {count} checkpoints "
            f"of {one / 1e6:,.0f} MB (--keep {options.keep} and one in the making) and a model of "
            f"{exported / 1e6:,.0f} MB; free some, or choose another --out",
        )


def checkpoint_bytes(model: Any, options: TrainOptions) -> int:
    """How large a checkpoint is: what is trained in float32, and AdamW's two moments of it.

    With Muon, which keeps one, a little less. Adapters of rank r have r weights for each row and column.
    """
    weights = list(model.parameters())
    trained: int = sum(weight.numel() for weight in weights)
    if options.lora_rank:
        trained = sum(options.lora_rank * sum(w.shape) for w in weights if w.ndim == 2)
    return 3 * 4 * trained + (1 << 20)


@contextmanager
def told_when_full(out: Path, room: int) -> Iterator[None]:
    """Turn what libraries raise when they cannot write into one line, where the disk is full.

    Args:
        out: Where they write.
        room: Bytes; with less than that free, the disk is to blame.

    Raises:
        DiskFull: Instead of theirs.
    """
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(out).free
        is_writing = isinstance(error, OSError | RuntimeError) or "Safetensor" in type(error).__name__
        if is_writing and free < room:
            raise DiskFull(
                out,
                f"the disk is full: {free / 1e6:,.0f} MB are free, and {room / 1e6:,.0f} MB were to be "
                "written; free some and go on with --resume",
            ) from error
        raise
