"""A run's folder: whose it is, what was chosen for it, and whether a resumed run is the same run.

    <out>/options.json    options and inputs as they were given, then what was chosen
    <out>/checkpoints/, rows/, loss.csv, model/

Used by `pipeline.py`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_store.atomic import write_atomically
from model_store.training.errors import InvalidOption
from model_store.training.train_options import TrainOptions

_OPTIONS_FILE = "options.json"
_WATCHING = ("sample_every", "report_to")  # options that decide nothing of what is learned


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a run came to take, kept for when it is resumed.

    Args:
        options: With nothing left to choose.
        block: Tokens in a row.
        data: The fingerprint of the files, `Built.data`.
    """

    options: TrainOptions
    block: int
    data: str


def prepare_folder(out: Path, options: TrainOptions, inputs: dict[str, Any], is_resumed: bool) -> None:
    """Make a run's folder, or check that a resumed run is the same run.

    Args:
        out: The folder.
        options: Kept in it.
        inputs: What else decides the run (data, model, tasks), as JSON values; kept in it.
        is_resumed: Whether the caller asked to resume.

    Raises:
        InvalidOption: The folder holds a run and none is to be resumed, or the options differ from that
            run's.
    """
    path = out / _OPTIONS_FILE
    wanted = json.loads(json.dumps({"options": asdict(options), "inputs": inputs}, default=str))
    has_run = path.exists() and any((out / "checkpoints").glob("checkpoint-*"))
    if has_run and not is_resumed:
        raise InvalidOption("--out", f"{out} holds a run already; add --resume, or choose another folder")
    if not has_run:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(wanted, indent=2))
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    for part in ("options", "inputs"):
        for key, value in wanted[part].items():
            if key in _WATCHING:
                continue
            was = known.get(part, {}).get(key)
            if was != value:
                raise InvalidOption("--resume", _difference(key, value, was))


def _difference(name: str, now: Any, was: Any) -> str:
    """Say what differs first, as deep as both are tables."""
    if isinstance(now, dict) and isinstance(was, dict):
        key = next(key for key in {**now, **was} if now.get(key) != was.get(key))
        return _difference(f"{name}.{key}", now.get(key), was.get(key))
    return f"{name} is {now!r} now and was {was!r} in that run"


def keep_chosen(out: Path, chosen: Chosen) -> None:
    """Keep what was chosen for a run; those of its processes that write the same do no harm."""
    values = json.loads((out / _OPTIONS_FILE).read_text(encoding="utf-8"))
    write_atomically(out / _OPTIONS_FILE, json.dumps({**values, "chosen": asdict(chosen)}, indent=2))


def chosen_before(out: Path) -> Chosen | None:
    """Give what was chosen for the run in `out`; None where none got so far."""
    path = out / _OPTIONS_FILE
    values = json.loads(path.read_text(encoding="utf-8")).get("chosen") if path.is_file() else None
    return None if values is None else Chosen(**{**values, "options": TrainOptions(**values["options"])})
