"""The learning curve of a run: `loss.csv`, its plot, and the marks that say which checkpoints are whole.

Callbacks for transformers' Trainer; the loop is in `train.py`, what a person sees of it in `watching.py`.
"""

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from model_store.atomic import write_atomically
from model_store.training.errors import Diverged, MissingExtra

COLUMNS = ("step", "tokens", "loss", "valid_loss", "learning_rate")
_STATE = "trainer_state.json"
_MARK = "whole"  # written after everything else of a checkpoint


class CurveCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps `loss.csv` up to date; after a resume it goes on where the checkpoint was, as if nothing had
    happened.

    Args:
        path: The CSV file; replaced as a whole each time, so a killed run leaves a readable one.
        tokens_per_step: What one optimizer step sees on all devices.
    """

    def __init__(self, path: Path, tokens_per_step: int) -> None:
        self._path, self._tokens_per_step = path, tokens_per_step
        self._rows: dict[int, dict[str, Any]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._rows = {}
        if state.global_step and self._path.exists():
            with self._path.open(encoding="utf-8", newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if int(row["step"]) <= state.global_step]
            self._rows = {int(row["step"]): row for row in rows}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        names = {"loss": "loss", "eval_loss": "valid_loss", "learning_rate": "learning_rate"}
        figures = {column: f"{float(logs[key]):.6g}" for key, column in names.items() if key in logs}
        if not state.is_world_process_zero or not figures:
            return
        row = self._rows.setdefault(state.global_step, {"step": state.global_step})
        row |= {"tokens": state.global_step * self._tokens_per_step, **figures}
        self._write()

    def _write(self) -> None:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(self._rows.values())
        write_atomically(self._path, table.getvalue())


class FiniteCallback(TrainerCallback):  # type: ignore[misc]
    """Ends a run whose loss is no finite number; a checkpoint of it would be of no use."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        for key in ("loss", "eval_loss", "grad_norm"):
            if key in logs and not math.isfinite(float(logs[key])):
                raise Diverged(state.global_step, args.learning_rate)


class LastCallback(TrainerCallback):  # type: ignore[misc]
    """Validates the last step, too, wherever `eval_every` falls."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate |= state.global_step >= state.max_steps


class MarkCallback(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as whole once it is written."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARK).touch()


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Give the newest checkpoint that was written to its end; halves, left by a kill, are deleted."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _MARK).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def take_up(checkpoint: Path) -> bool:
    """Make a checkpoint ready to go on from: the best one is looked for beside it, wherever the run lies now.

    Returns:
        Whether training had ended with it, at the last step or by an early stop: a process that died after it
        has only the model left to write.
    """
    path = checkpoint / _STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["best_model_checkpoint"]:
        best = checkpoint.parent / Path(state["best_model_checkpoint"]).name
        write_atomically(path, json.dumps({**state, "best_model_checkpoint": str(best)}, indent=2))
    is_over: bool = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return is_over


def read_curve(path: Path) -> list[dict[str, str]]:
    """Give the rows of a `loss.csv`."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def plot_curve(path: Path, picture: Path) -> None:
    """Draw a `loss.csv`: training and validation loss over tokens.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("matplotlib") from error
    rows = read_curve(path)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for column, label in (("loss", "training"), ("valid_loss", "validation")):
        points = [(int(row["tokens"]), float(row[column])) for row in rows if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
    axes.set(xlabel="tokens", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
