"""Averaged checkpoints."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model_store.recipes.simple.average import average


def test_an_average_weighs_each_checkpoint_by_its_share(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 5.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2,), value)}, tmp_path / name / "model.safetensors")
    (tmp_path / "a/config.json").write_text("{}", encoding="utf-8")
    average(tmp_path / "out", [(3.0, tmp_path / "a"), (1.0, tmp_path / "b")])
    assert load_file(tmp_path / "out/model.safetensors")["w"].tolist() == [2.0, 2.0]
    assert (tmp_path / "out/config.json").read_text(encoding="utf-8") == "{}"
