"""An example packed into a row of many has the loss that it has alone: for the model that trains here and for
transformers' own, answers only and prompts at a weight, rows at their start and moved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model_store.training.examples import Example
from model_store.training.lean_gpt2 import LeanGPT2
from model_store.training.packing import IGNORED, Rows, RowWriter

BLOCK, POSITIONS = 64, 96
SIZES = (9, 7, 12)
EXAMPLES = [
    Example([10 * n + k % 7 for k in range(size)], [k > 3 for k in range(size)])
    for n, size in enumerate(SIZES)
]


def row_of(
    folder: Path, examples: list[Example], shifted_share: float, prompt_weight: float
) -> dict[str, Any]:
    writer = RowWriter(folder, BLOCK, pad_id=0, vocab_size=50)
    for example in examples:
        writer.add_whole(example)
    writer.finish()
    return Rows(folder, POSITIONS, shifted_share, prompt_weight)[0]


def only(row: dict[str, Any], start: int, size: int) -> dict[str, Any]:
    """The row with nothing to learn but in `size` tokens from `start`."""
    places = torch.arange(BLOCK)
    is_other = (places < start) | (places >= start + size)
    fills = {"labels": IGNORED, "weights": 0.0}
    return {
        key: value.masked_fill(is_other, fills[key]) if key in fills else value for key, value in row.items()
    }


def loss_of(model: GPT2LMHeadModel, row: dict[str, Any]) -> torch.Tensor:
    batch = {key: value[None] for key, value in row.items()}
    if isinstance(model, LeanGPT2):
        return model(**batch).loss
    labels = batch["labels"]
    logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="none")
    counts = batch.get("weights", (labels != IGNORED).float())[0, 1:]
    return (losses * counts).sum() / counts.sum()


@pytest.mark.parametrize("shifted_share", [0.0, 0.999])
@pytest.mark.parametrize("prompt_weight", [0.0, 0.25])
@pytest.mark.parametrize("kind", [LeanGPT2, GPT2LMHeadModel])
def test_an_example_has_the_same_loss_alone_and_packed(
    tmp_path: Path, kind: type[GPT2LMHeadModel], prompt_weight: float, shifted_share: float
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=POSITIONS, initializer_range=0.5
    )
    model = kind(config).eval()
    together = row_of(tmp_path / "all", EXAMPLES, shifted_share, prompt_weight)
    for n, size in enumerate(SIZES):
        alone = row_of(tmp_path / str(n), [EXAMPLES[n]], shifted_share, prompt_weight)
        packed = loss_of(model, only(together, sum(SIZES[:n]), size))
        assert torch.isclose(packed, loss_of(model, alone), rtol=0, atol=1e-4)
