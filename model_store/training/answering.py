"""Runs a checkpoint's tasks offline, with transformers, to measure it: grounded answers and free texts.

Slow and simple; the service does the same with its own engine. An answer is a span of the context from word
border to word border, found by a constrained beam search; it is given when it is likelier than the task's
no-answer text. Serving is in `service/`; the metrics are in `metrics_text.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_store.checkpoint import read_checkpoint
from model_store.evidence import SEPARATOR
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.weights import load_gpt2

NUM_BEAMS = 4
MAX_ANSWER_TOKENS = 40
_NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model found.

    Args:
        text: The best span of the context.
        score: log p(span and end) - log p(no answer and end), in nats, the task's penalty taken off the
            latter; inf where the task has no no-answer text.
    """

    text: str
    score: float


class SpanAutomaton:
    """Which tokens may follow, so that the text stays a span of the context that begins and ends at word
    borders.

    Args:
        context_ids: The context's tokens, as they stand in the prompt.
        tokenizer: Tells which tokens begin a word.
        barriers: Tokens that no span holds.
    """

    def __init__(
        self, context_ids: Sequence[int], tokenizer: Tokenizer, barriers: Collection[int] = ()
    ) -> None:
        self._ids = list(context_ids)
        self._eos = tokenizer.eos_id
        pieces = [tokenizer.piece(None, token) for token in self._ids]
        self._ids = [_NO_TOKEN if token in barriers else token for token in self._ids]
        self._begins = [place for place, piece in enumerate(pieces) if _begins_word(piece)]
        inner = [piece[:1].isalnum() or piece[:1] >= b"\x80" for piece in pieces] + [False]
        self._may_end = [not inner[place + 1] for place in range(len(pieces))]

    def allowed(self, output_ids: Sequence[int]) -> list[int]:
        """Give the ids that may come after `output_ids`; the end of text among them where a span may end."""
        places = self._begins
        for depth, token in enumerate(output_ids):
            places = [place + 1 for place in places if place < len(self._ids) and self._ids[place] == token]
            if token == self._eos or (depth and not places):
                return [self._eos]
        found = {self._ids[place] for place in places if place < len(self._ids)} - {_NO_TOKEN}
        if output_ids and any(self._may_end[place - 1] for place in places):
            found.add(self._eos)
        return sorted(found) or [self._eos]


class LocalModel:
    """A checkpoint folder, loaded for evaluation.

    Args:
        folder: A Hugging Face folder with `tokenizer.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.load(folder)
        self.model: Any = load_gpt2(read_checkpoint(folder))
        self.num_positions: int = self.model.config.n_positions

    def prompt(self, task: Task, fields: Mapping[str, str], reserve: int) -> list[int]:
        """Render a prompt, its document shortened from the end until `reserve` more tokens fit."""
        ids = task.encode(self.tokenizer, fields)
        excess = len(ids) + reserve - self.num_positions
        if excess <= 0 or task.document is None:
            return ids[-(self.num_positions - reserve) :]
        document = self.tokenizer.encode(fields[task.document])
        shorter = self.tokenizer.decode(document[: max(1, len(document) - excess - 4)])
        return task.encode(self.tokenizer, {**fields, task.document: shorter})

    @torch.inference_mode()
    def answer(self, task: Task, context: str, question: str) -> Answer:
        """Find the span of `context` that answers `question`, and how sure the model is that there is one."""
        ids = self.prompt(task, {"context": context, "question": question}, reserve=MAX_ANSWER_TOKENS + 1)
        evidence = task.read({"context": context, "question": question})
        barriers = self.tokenizer.encode(SEPARATOR) if task.evidence else ()
        automaton = SpanAutomaton(self.tokenizer.encode(" " + evidence.text), self.tokenizer, barriers)
        found = self.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=MAX_ANSWER_TOKENS,
            num_beams=NUM_BEAMS,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=True,
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.eos_id,
            prefix_allowed_tokens_fn=lambda _, sofar: automaton.allowed(sofar[len(ids) :].tolist()),
            return_dict_in_generate=True,
            output_scores=True,
        )
        text = self.tokenizer.decode(found.sequences[0, len(ids) :].tolist()).strip()
        if not task.no_answer:
            return Answer(text, float("inf"))
        refusal = self.log_likelihood(ids, task.encode_answer(self.tokenizer, task.no_answer))
        return Answer(text, float(found.sequences_scores[0]) - refusal + task.no_answer_penalty)

    @torch.inference_mode()
    def log_likelihood(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> float:
        """log p(answer | prompt), summed over the answer's tokens, in nats."""
        ids = torch.tensor([[*prompt_ids, *answer_ids]])
        scores = self.model(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        return float(scores.gather(1, ids[0, len(prompt_ids) :, None]).sum())

    @torch.inference_mode()
    def generate(self, task: Task, fields: Mapping[str, str]) -> str:
        """Give the greedy answer of a task, trimmed at its stop strings."""
        limit = int(task.sampling.get("max_new_tokens", 128))
        ids = self.prompt(task, fields, reserve=limit)
        out = self.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=limit,
            do_sample=False,
            no_repeat_ngram_size=int(task.sampling.get("no_repeat_ngram_size", 0)),
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.eos_id,
        )
        text = self.tokenizer.decode(out[0, len(ids) :].tolist())
        for stop in task.stop:
            text = text.split(stop, 1)[0]
        return text.strip()

    @torch.inference_mode()
    def choose(self, task: Task, fields: Mapping[str, str]) -> str:
        """Give the likeliest of a task's labels."""
        ids = self.prompt(task, fields, reserve=MAX_ANSWER_TOKENS)
        return max(task.labels, key=lambda t: self.log_likelihood(ids, task.encode_answer(self.tokenizer, t)))


def _begins_word(piece: bytes) -> bool:
    """Answers are encoded as " " + text, so each begins with a space."""
    return piece[:1] == b" "
