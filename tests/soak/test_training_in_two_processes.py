"""A run that torchrun starts in two processes, which share each step."""

import subprocess
import sys
from pathlib import Path

import pytest
from toy import toy_tokenizer

from model_store.training.curve import read_curve

SHAPE = "--n-embd 32 --n-layer 2 --n-head 2 --n-positions 64 --block 32"
RUN = (
    "--batch-rows 2 --max-steps 6 --log-every 2 --eval-every 3 --save-every 3 --precision fp32 --license MIT"
)


@pytest.mark.slow
def test_two_processes_train_one_model_and_one_of_them_tells(tmp_path: Path) -> None:
    toy_tokenizer(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = ["--text", str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "tokenizer")]
    command = [*torchrun, "-m", "service.cli", "model", "pretrain", *given, "--out", str(tmp_path / "out")]
    run = subprocess.run(
        [*command, *SHAPE.split(), *RUN.split()], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert [row["step"] for row in read_curve(tmp_path / "out/loss.csv") if row["loss"]] == ["2", "4", "6"]
    assert (tmp_path / "out/model/model.safetensors").stat().st_size > 0
    said = run.stdout + run.stderr
    assert said.count("step 6 of 6, loss") == 1, said
    assert "Warning" not in said, said
