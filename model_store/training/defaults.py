"""What a run takes where no option says it, chosen from the data and the model.

An option left open is chosen: the block from the lengths of the examples, the batch and the epochs from the
number of rows, the learning rate from what is trained. `dataset.py` and `pipeline.py` choose, and say
what was chosen and why.
"""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from model_store.architecture import Architecture
from model_store.training.train import num_steps
from model_store.training.train_options import TrainOptions

_TEXT_BLOCK = 1024
_LEAST_BLOCK, _BLOCK_UNIT = 64, 32
_COVERED = 0.99  # the share of the examples that a block holds whole
_BATCH_ROWS = 8
_STEPS_PER_EPOCH = 20  # fewer rows than this many batches make smaller batches
_EPOCHS, _MOST_EPOCHS, _STEPS = 3, 20, 150  # epochs at least and at most; steps wanted of small data
_PATIENCE = 3
_NEW_RATE, _ADAPTER_RATE = 1e-3, 1e-3
_FULL_RATES = (
    (30e6, 2e-4),
    (200e6, 1e-4),
    (math.inf, 5e-5),
)  # up to so many weights; larger models move less


def choose_block(lengths: npt.NDArray[np.int64], num_text: int, num_positions: int) -> tuple[int, str]:
    """Choose how many tokens a row has, from 1 to the model's positions.

    Args:
        lengths: Tokens of each task example.
        num_text: Tokens of plain text.
        num_positions: The model's positions.

    Returns:
        The block, and why.
    """
    max_block = min(_TEXT_BLOCK, num_positions)
    if not len(lengths):
        if num_text >= max_block * _STEPS_PER_EPOCH:
            return max_block, "for text"
        block = num_text // _STEPS_PER_EPOCH // _BLOCK_UNIT * _BLOCK_UNIT
        return min(max(_LEAST_BLOCK, block), max_block), f"the text has {num_text:,} tokens"
    longest = int(np.partition(lengths, place := math.ceil(len(lengths) * _COVERED) - 1)[place])
    longest = min(longest, num_positions)
    block = max(_LEAST_BLOCK, math.ceil(longest / _BLOCK_UNIT) * _BLOCK_UNIT)
    if num_text:
        block = max(block, _TEXT_BLOCK // 2)
    return min(block, num_positions), f"99 % of {len(lengths):,} examples have at most {longest} tokens"


def choose_held(count: int, unit: int) -> int:
    """Choose how much of the data validates: a tenth, but no more than is enough to tell one model from
    another, or 2 %.

    Args:
        count: Examples of a task, or tokens of text.
        unit: Enough of them.
    """
    return min(count // 10, max(unit, count // 50))


def choose_options(
    options: TrainOptions, num_rows: int, base: Architecture | None, is_validated: bool
) -> tuple[TrainOptions, str]:
    """Choose what `options` leaves open, at 0 or None.

    Args:
        options: As given.
        num_rows: Rows to learn from.
        base: Of the model that goes on learning, a large one at a lower rate; None for a new one.
        is_validated: There are rows to validate on.

    Returns:
        Options with nothing left to choose, and what was chosen, in words.
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
            is_limit = f" (the limit; {_STEPS} steps would take {wanted})" if wanted > _MOST_EPOCHS else ""
            said.append(f"epochs {chosen.epochs:g}{is_limit}")
    steps = num_steps(num_rows, chosen)
    if not options.learning_rate:
        rate, why = _rate(options.lora_rank, base)
        chosen = replace(chosen, learning_rate=rate)
        said.append(f"learning rate {rate:g} ({why})")
    log_every = options.log_every or max(1, steps // 50)
    eval_every = options.eval_every or 5 * log_every
    save_every = options.save_every or 10 * log_every
    patience = options.patience
    if patience is None:
        patience = _PATIENCE if is_validated and base is not None else 0
        if patience:
            said.append(f"early stop after {patience} validations without a better loss (--patience 0: none)")
    if patience:  # the best checkpoint can only be one that was validated
        eval_every = save_every = math.ceil(eval_every / log_every) * log_every
    chosen = replace(
        chosen,
        log_every=log_every,
        eval_every=eval_every,
        save_every=save_every,
        patience=patience,
        sample_every=options.sample_every or max(1, steps // 5),
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
