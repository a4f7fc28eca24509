"""Renders records as token sequences with a loss mask, through the same `Task` objects that serving uses.

One `Example` is a prompt and its answer, or one document with several questions and answers in a row, which
spares the document's tokens. Reading files is in `model_store/text_files.py`, packing into rows in
`model_store/packing.py`.
"""

from collections.abc import Mapping, Sequence
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
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    return Example(ids, [True] * len(ids))


def encode_pairs(
    task: Task, tokenizer: Tokenizer, pairs: Sequence[Pair], is_loss_everywhere: bool
) -> Example:
    """Render pairs that share a document: the first whole, of the others what follows the document.

    Args:
        task: Renders each pair as serving does.
        tokenizer: The model's own.
        pairs: One, or several with the same text in the task's document field.
        is_loss_everywhere: Count the prompt's tokens too (pretraining) or only the answers' (fine-tuning).

    Returns:
        prompt + answer + end of text, again and again.
    """
    ids: list[int] = []
    is_target: list[bool] = []
    for place, pair in enumerate(pairs):
        prompt = task.encode(tokenizer, pair.fields)
        if place and not task.evidence:  # with evidence, each question reads other sentences
            prompt = prompt[len(_shared_prompt(task, tokenizer, pair.fields)) :]
        answer = task.encode_answer(tokenizer, pair.answer)
        ids += prompt + answer
        is_target += [is_loss_everywhere] * len(prompt) + [True] * len(answer)
    return Example(ids, is_target)


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


def _shared_prompt(task: Task, tokenizer: Tokenizer, fields: Mapping[str, str]) -> list[int]:
    """The prompt's ids up to the end of the document."""
    ids: list[int] = []
    for text, is_user_text in task.segments(fields):
        ids += tokenizer.encode(text) if is_user_text else tokenizer.encode_specials(text)
        if is_user_text and task.document and text.strip() == fields[task.document].strip():
            break
    return ids
