"""Renders records as token sequences with a loss mask, through the same `Task` objects that serving uses.

One `Example` is a prompt and its answer, or a text. Reading files is in `text_files.py`, packing
into rows in `packing.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.errors import EncodesToNothing


@dataclass(frozen=True, slots=True)
class Pair:
    """What one record asks and the answer wanted.

    Args:
        fields: A text for each field of the task's template.
        answer: The target; for kind `qa` the task's no-answer text where the document does not hold the
            answer.
        origin: Where it stands, as `reviews.csv, line 7`; "" for one that was made.
    """

    fields: Mapping[str, str]
    answer: str
    origin: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens and where the loss counts.

    Args:
        ids: Token ids.
        is_target: One flag for each id: the model is trained to predict this token.
    """

    ids: list[int]
    is_target: list[bool]

    def part(self, start: int, end: int) -> "Example":
        """The tokens from `start` to before `end`."""
        return Example(self.ids[start:end], self.is_target[start:end])


def encode_text(tokenizer: Tokenizer, text: str) -> Example:
    """Encode a document for language modelling: every token counts, the end of text too.

    Raises:
        EncodesToNothing: The tokenizer has no token for any of it.
    """
    encoded = tokenizer.encode(text)
    if text.strip() and not encoded:
        raise EncodesToNothing
    ids = [*tokenizer.bos_ids, *encoded, tokenizer.eos_id]
    return Example(ids, [True] * len(ids))


def encode_pair(task: Task, tokenizer: Tokenizer, pair: Pair, is_loss_everywhere: bool) -> Example:
    """Render a pair as serving does: prompt, answer, end of text.

    Args:
        task: Renders the prompt.
        tokenizer: The model's own.
        pair: Fields and answer.
        is_loss_everywhere: Count the prompt's tokens too (pretraining) or only the answer's (fine-tuning).

    Raises:
        EncodesToNothing: The tokenizer has no token for the answer, or for any of the fields.
    """
    prompt, answer = task.encode(tokenizer, pair.fields), task.encode_answer(tokenizer, pair.answer)
    if (pair.answer.strip() and len(answer) == 1) or len(prompt) <= _num_literal(task, tokenizer):
        texts = [text for text in (*pair.fields.values(), pair.answer) if text.strip()]
        if any(not tokenizer.encode(text) for text in texts):
            raise EncodesToNothing(pair.origin)
    return Example(prompt + answer, [is_loss_everywhere] * len(prompt) + [True] * len(answer))


def fit(task: Task, tokenizer: Tokenizer, pair: Pair, block: int) -> Pair | None:
    """Cut the document so that prompt and answer fit a block, as serving does.

    A prompt of kind `generate` or `choice` loses its document's start (`overflow: truncate_left`); a summary
    is made of the beginning; of a question's context that end goes which leaves the answer in.

    Returns:
        The pair itself where it fits; None where what fits holds none of the document, or a question's
        context no longer the answer.
    """
    excess = len(encode_pair(task, tokenizer, pair, False).ids) - block
    while excess > 0:
        if task.document is None:
            return None
        text = pair.fields[task.document]
        offsets = tokenizer.encode_with_offsets(text)[1]
        kept = len(offsets) - excess
        if kept < 1:
            return None
        head, tail = text[: offsets[kept - 1][1]], text[offsets[-kept][0] :]
        if task.kind == "qa" and pair.answer != task.no_answer:
            is_early = 2 * text.find(pair.answer) < len(text)
            parts = (head, tail) if is_early else (tail, head)
            cut = next((part for part in parts if pair.answer in part), "")
        else:
            cut = tail if task.kind in ("generate", "choice") else head
        if not cut.strip() or len(cut) == len(text):
            return None
        pair = replace(pair, fields={**pair.fields, task.document: cut})
        excess = len(encode_pair(task, tokenizer, pair, False).ids) - block
    return pair


@lru_cache(maxsize=64)
def _num_literal(task: Task, tokenizer: Tokenizer) -> int:
    """Tokens of a prompt with empty fields."""
    return len(task.encode(tokenizer, dict.fromkeys(task.fields, "")))


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
