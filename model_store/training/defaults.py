"""What a run takes where no option says it, chosen from the data and the model.

An option left at 0 is chosen: the block from the lengths of the examples, the batch and the epochs from the
number of rows, the learning rate from what is trained. `pipeline.py` and `preview.py` choose in the same way
and say what was chosen and why.
"""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

from model_store.architecture import Architecture
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.dataset import BuildPlan, build
from model_store.training.examples import Pair, encode_pair, encode_text
from model_store.training.text_files import documents, expand
from model_store.training.train import TrainOptions, num_steps

_TEXT_BLOCK = 1024
_LEAST_BLOCK, _BLOCK_UNIT = 64, 32
_COVERED = 0.99  # the share of the examples that a block holds whole
_BATCH_ROWS = 8
_STEPS_PER_EPOCH = 20  # fewer rows than this many batches make smaller batches
_EPOCHS, _MOST_EPOCHS, _STEPS = 3, 20, 150  # epochs at least and at most; steps wanted of small data
_NEW_RATE, _ADAPTER_RATE = 1e-3, 1e-3
_FULL_RATES = (
    (30e6, 2e-4),
    (200e6, 1e-4),
    (math.inf, 5e-5),
)  # up to so many weights; larger models move less


def choose_block(plan: BuildPlan, tokenizer: Tokenizer, num_positions: int) -> tuple[int, str]:
    """Choose how many tokens a row has, from 1 to the model's positions.

    Args:
        plan: What to read; its block does not count.
        tokenizer: The model's own.
        num_positions: The model's positions.

    Returns:
        The block, and why.

    Raises:
        StoreError: The data is wrong.
    """
    if all(source.kind == "text" for source in plan.sources):
        return _text_block(plan, tokenizer, num_positions)
    lengths: list[int] = []

    def watch(task: Task, pair: Pair, fitted: Pair | None) -> None:
        example = encode_pair(task, tokenizer, fitted or pair, plan.is_loss_everywhere)
        lengths.append(min(len(example.ids), num_positions))

    with tempfile.TemporaryDirectory(prefix="textgen-lengths-") as folder:
        build(replace(plan, block=num_positions), tokenizer, Path(folder), lambda line: None, watch)
    if not lengths:
        return min(_TEXT_BLOCK, num_positions), "no example is left to measure"
    longest = sorted(lengths)[math.ceil(len(lengths) * _COVERED) - 1]
    block = max(_LEAST_BLOCK, math.ceil(longest / _BLOCK_UNIT) * _BLOCK_UNIT)
    if any(source.kind == "text" for source in plan.sources):
        block = max(block, _TEXT_BLOCK // 2)
    return min(block, num_positions), f"99 % of {len(lengths):,} examples have at most {longest} tokens"


def _text_block(plan: BuildPlan, tokenizer: Tokenizer, num_positions: int) -> tuple[int, str]:
    """A block for text: the model's, or less where the text would not make some rows of it."""
    most = min(_TEXT_BLOCK, num_positions)
    num_tokens = 0
    for file in expand([source.path for source in plan.sources]):
        for document in documents(file):
            num_tokens += len(encode_text(tokenizer, document).ids)
            if num_tokens >= most * _STEPS_PER_EPOCH:
                return most, "for text"
    block = num_tokens // _STEPS_PER_EPOCH // _BLOCK_UNIT * _BLOCK_UNIT
    return min(max(_LEAST_BLOCK, block), most), f"the text has {num_tokens:,} tokens"


def choose_options(
    options: TrainOptions, num_rows: int, base: Architecture | None
) -> tuple[TrainOptions, str]:
    """Choose what `options` leaves at 0.

    Args:
        options: As given.
        num_rows: Rows to learn from.
        base: Of the model that goes on learning, a large one at a lower rate; None for a new one.

    Returns:
        Options without a 0 that stands for a choice, and what was chosen, in words.
    """
    said = []
    batch = options.batch_rows or max(1, min(_BATCH_ROWS, num_rows // _STEPS_PER_EPOCH))
    chosen = replace(options, batch_rows=batch)
    if not options.batch_rows:
        said.append(f"batch rows {batch}")
    if not options.epochs:
        a_step = batch * options.accumulate
        wanted = 1 if base is None else max(_EPOCHS, math.ceil(_STEPS / max(1, num_rows // a_step)))
        chosen = replace(chosen, epochs=float(min(wanted, _MOST_EPOCHS)))
        if not options.max_steps:
            said.append(f"epochs {chosen.epochs:g}")
    steps = num_steps(num_rows, chosen)
    if not options.learning_rate:
        rate, why = _rate(options.lora_rank, base)
        chosen = replace(chosen, learning_rate=rate)
        said.append(f"learning rate {rate:g} ({why})")
    log_every = options.log_every or max(1, steps // 50)
    chosen = replace(
        chosen,
        log_every=log_every,
        eval_every=options.eval_every or 5 * log_every,
        save_every=options.save_every or 10 * log_every,
    )
    return chosen, f"{num_rows:,} rows, {steps:,} steps; chosen: {', '.join(said) or 'nothing'}"


def _rate(lora_rank: int, base: Architecture | None) -> tuple[float, str]:
    """A learning rate, and what it is for."""
    if base is None:
        return _NEW_RATE, "a new model"
    if lora_rank:
        return _ADAPTER_RATE, "adapters"
    weights = sum(math.prod(shape) for _, shape in base.tensor_shapes())
    rate = next(rate for most, rate in _FULL_RATES if weights <= most)
    return rate, f"all of {weights / 1e6:,.0f} million weights"
