"""Golden prompts: what a model said when it came into the store, asked again before it is activated.

They run through transformers, greedily and in fp32, so they check the files and not the engine. Prompts are
rendered from the model's own tasks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.checkpoint import read_checkpoint
from model_store.entry import ModelEntry
from model_store.errors import GoldenMismatch
from model_store.manifest import GoldenPrompt
from model_store.task import Task
from model_store.tokenizer import Tokenizer

_NUM_NEW_TOKENS = 16
_LOGIT_TOLERANCE = 0.01  # two machines sum in different orders; a wrong weight shifts logits far more
_TEXT = "A fox came to a wide river. It could not swim, so it asked a bird to help."
_PROMPTS = ("Once upon a time", "The", "计算机科学是一种")


def make_golden(folder: Path, tasks: Mapping[str, Task]) -> tuple[GoldenPrompt, ...]:
    """Ask a model its golden prompts for the first time.

    Args:
        folder: A Hugging Face folder with its tokenizer.
        tasks: Each gives a prompt, beside three that every model gets.
    """
    import torch

    model = _load(folder)
    tokenizer = Tokenizer.load(folder, model.config.vocab_size)
    prompts = [[*tokenizer.bos_ids, *tokenizer.encode(text)] for text in _PROMPTS]
    prompts += [task.encode(tokenizer, dict.fromkeys(task.fields, _TEXT)) for task in tasks.values()]
    num_new = min(_NUM_NEW_TOKENS, model.config.n_positions // 2)
    golden = []
    for prompt in prompts:
        prompt_ids = (prompt or [tokenizer.eos_id])[-(model.config.n_positions - num_new) :]
        ids = list(prompt_ids)
        with torch.inference_mode():
            while len(ids) < len(prompt_ids) + num_new and ids[-1:] != [tokenizer.eos_id]:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected = ids[len(prompt_ids) :]
        golden.append(GoldenPrompt(tuple(prompt_ids), tuple(expected), tokenizer.decode(expected)))
    return tuple(golden)


def check_golden(entry: ModelEntry) -> None:
    """Ask again.

    A continuation passes when each of its tokens is the likeliest after those before it, or nearly so.

    Raises:
        GoldenMismatch: Names the prompt and shows what was expected.
    """
    if not entry.manifest.golden:
        return
    model = _load(entry.path)
    for index, prompt in enumerate(entry.manifest.golden):
        if not _still_says(model, prompt):
            raise GoldenMismatch(
                f"{entry.label}: golden prompt {index} no longer gives {prompt.expected!r}; not activated"
            )


def _still_says(model: Any, prompt: GoldenPrompt) -> bool:
    """One forward over prompt and continuation together."""
    import torch

    ids = torch.tensor([[*prompt.prompt_ids, *prompt.expected_ids]])  # (1, T)
    if int(ids.max()) >= model.config.vocab_size or ids.shape[1] > model.config.n_positions:
        return False
    with torch.inference_mode():
        logits = model(ids).logits[0, len(prompt.prompt_ids) - 1 : -1]  # (num expected, vocabulary)
    chosen = logits.gather(1, torch.tensor(prompt.expected_ids, dtype=torch.int64)[:, None])[:, 0]
    return bool((chosen >= logits.max(dim=1).values - _LOGIT_TOLERANCE).all())


def _load(folder: Path) -> Any:
    from transformers.utils import logging

    from model_store.weights import load_gpt2

    logging.disable_progress_bar()
    return load_gpt2(read_checkpoint(folder))
