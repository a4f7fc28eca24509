"""Averages checkpoints of one shape: those of one run stand in for a learning rate that decays, and the model
that a run began with brings back what the run forgot.

    python -m model_store.recipes.simple.average OUT WEIGHT=FOLDER WEIGHT=FOLDER ...

Weights are divided by their sum. OUT is a folder like the first one, with the averaged `model.safetensors`.

Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization"; Wortsman et
    al. 2022, "Robust fine-tuning of zero-shot models".
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_WEIGHTS = "model.safetensors"


def average(out: Path, parts: Sequence[tuple[float, Path]]) -> None:
    """Write the weighted mean of checkpoints in float32.

    Args:
        out: Made; takes the first folder's other files.
        parts: A weight and a folder each.
    """
    shutil.copytree(parts[0][1], out)
    total = sum(weight for weight, _ in parts)
    mean: dict[str, torch.Tensor] = {}
    for weight, folder in parts:
        for name, tensor in load_file(folder / _WEIGHTS).items():
            mean[name] = mean.get(name, torch.zeros(())) + tensor.float() * (weight / total)
    save_file(mean, out / _WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    pairs = [argument.split("=", 1) for argument in sys.argv[2:]]
    average(Path(sys.argv[1]), [(float(weight), Path(folder)) for weight, folder in pairs])
