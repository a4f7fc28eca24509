"""Renders records as token sequences with a loss mask, through the same `Task` objects that serving uses.

One `Example` is a prompt and its answer, or a text. Reading files is in `text_files.py`, packing
into rows in `packing.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from model_store.task import Task
from model_store.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """What one record asks and the answer wanted.

    Args:
        fields: A text for each field of the task's template.
        answer: The target; for kind `qa` the task's no-answer text where the document does not hold the
            answer.
    """

    fields: Mapping[str, str]
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens and where the loss counts.

    Args:
        ids: Token ids.
        is_target: One flag for each id: the model is trained to predict this token.
    """

    ids: list[int]
    is_target: list[bool]


def encode_text(tokenizer: Tokenizer, text: str) -> Example:
    """Encode a document for language modelling: every token counts, the end of text too."""
    ids = [*tokenizer.bos_ids, *tokenizer.encode(text), tokenizer.eos_id]
    return Example(ids, [True] * len(ids))


def encode_pair(task: Task, tokenizer: Tokenizer, pair: Pair, is_loss_everywhere: bool) -> Example:
    """Render a pair as serving does: prompt, answer, end of text.

    Args:
        task: Renders the prompt.
        tokenizer: The model's own.
        pair: Fields and answer.
        is_loss_everywhere: Count the prompt's tokens too (pretraining) or only the answer's (fine-tuning).
    """
    prompt, answer = task.encode(tokenizer, pair.fields), task.encode_answer(tokenizer, pair.answer)
    return Example(prompt + answer, [is_loss_everywhere] * len(prompt) + [True] * len(answer))


def shorten(task: Task, tokenizer: Tokenizer, pair: Pair, max_tokens: int) -> Pair:
    """Cut the document of a pair to `max_tokens` tokens, at a token's border; 0 leaves it as it is."""
    if not max_tokens or task.document is None:
        return pair
    text = pair.fields[task.document]
    if len(text) <= max_tokens:
        return pair
    offsets = tokenizer.encode_with_offsets(text)[1]
    if len(offsets) <= max_tokens:
        return pair
    return replace(pair, fields={**pair.fields, task.document: text[: offsets[max_tokens - 1][1]]})
