"""What a person sees of a run: a bar or plain lines with speed and time left, and what the model writes.

Callbacks for transformers' Trainer; `curve.py` has those that keep what came out.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback

from model_store.tokenizer import Tokenizer
from model_store.training.packing import Rows

NUM_SAMPLES, MAX_NEW_TOKENS = 2, 40
_TEXT_PROMPT = 24
_SHOWN = 200  # the last characters of a prompt


def progress(tokens_per_step: int, report: Callable[[str], None]) -> TrainerCallback:
    """Give a bar where standard error is a terminal, else plain lines, one for each point of the curve.

    Args:
        tokens_per_step: What one optimizer step sees on all devices.
        report: Gets the lines.
    """
    return BarCallback(tokens_per_step) if sys.stderr.isatty() else LinesCallback(tokens_per_step, report)


class _Speed:
    """Tokens a second and the seconds left, from the steps since this process began them."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._first, self._began = 0, 0.0

    def begin(self, step: int) -> None:
        self._first, self._began = step, time.monotonic()

    def words(self, step: int, last: int) -> str:
        done = step - self._first
        if done < 1:
            return ""
        seconds = max(time.monotonic() - self._began, 1e-6)
        speed = f"{done * self._tokens_per_step / seconds:,.0f} tokens/s"
        return f"{speed}, {duration((last - step) * seconds / done)} left"


class BarCallback(ProgressCallback):  # type: ignore[misc]
    """Trainer's progress bar with the time left; losses and tokens/s beside it instead of lines between."""

    def __init__(self, tokens_per_step: int) -> None:
        super().__init__()
        self._speed = _Speed(tokens_per_step)
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        super().on_train_begin(args, state, control, **more)
        self._speed.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self._shown |= {key: f"{float(logs[key]):.3f}" for key in ("loss", "eval_loss") if key in logs}
            words = self._speed.words(state.global_step, state.max_steps)
            self.training_bar.set_postfix({**self._shown, "": words.partition(",")[0]})


class LinesCallback(TrainerCallback):  # type: ignore[misc]
    """A line for each point of the curve: step, losses, tokens/s, time left."""

    def __init__(self, tokens_per_step: int, report: Callable[[str], None]) -> None:
        self._speed, self._report = _Speed(tokens_per_step), report

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._speed.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        names = {"loss": "loss", "eval_loss": "validation loss"}
        losses = [f"{name} {float(logs[key]):.3f}" for key, name in names.items() if key in logs]
        if state.is_world_process_zero and losses:
            words = self._speed.words(state.global_step, state.max_steps)
            parts = [
                f"step {state.global_step:,} of {state.max_steps:,}",
                *losses,
                *([words] if words else []),
            ]
            self._report(", ".join(parts))


class SampleCallback(TrainerCallback):  # type: ignore[misc]
    """Shows every so often how the model goes on from prompts, the likeliest token each time.

    Args:
        rows: Prompts are taken from the first of these: of an example what stands before its answer, of a
            text its beginning.
        tokenizer: The model's.
        every: Steps between samples.
        report: Gets the lines.
    """

    def __init__(self, rows: Rows, tokenizer: Tokenizer, every: int, report: Callable[[str], None]) -> None:
        self._tokenizer, self._every, self._report = tokenizer, every, report
        self._prompts = [rows.prompt(index, _TEXT_PROMPT) for index in range(min(NUM_SAMPLES, len(rows)))]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step % self._every or not state.is_world_process_zero:
            return
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        for prompt in self._prompts:
            said = continued(plain, prompt, MAX_NEW_TOKENS, self._tokenizer.eos_id)
            shown = self._tokenizer.decode(prompt)[-_SHOWN:]
            self._report(f"sample at step {state.global_step:,}: {shown} ⟦{self._tokenizer.decode(said)}⟧")


def continued(model: Any, prompt: list[int], num_new: int, eos_id: int) -> list[int]:
    """Continue a prompt greedily.

    Args:
        model: A GPT-2 with `transformer` and `lm_head`; its mode and the random state stay as they are.
        prompt: Token ids, at least one.
        num_new: At most so many; the model's positions are not exceeded.
        eos_id: Ends the text; not among the ids that are given.
    """
    was_training = model.training
    model.eval()
    given, said, past = list(prompt), list[int](), None
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            while len(said) < min(num_new, model.config.n_positions - len(prompt)):
                states = model.transformer(
                    torch.tensor([given], device=device), past_key_values=past, use_cache=True
                )
                past = states.past_key_values
                token = int(model.lm_head(states.last_hidden_state[0, -1]).argmax())
                if token == eos_id:
                    break
                said.append(token)
                given = [token]
    finally:
        model.train(was_training)
    return said


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
