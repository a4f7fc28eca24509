"""Small things to test the engine with: random checkpoints, byte tokens, a runner without a model, and a way
to run sequences to their end.

Weights are drawn so that logits have a standard deviation well above 1: with transformers' own initialisation
they are so flat that wrong arithmetic hides.
"""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from service.engine.batch import Batch, StepOutput
from service.engine.beam_search import Candidates
from service.engine.block_pool import BlockPool
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loader import build_engine
from service.engine.model.gpt2 import GPT2
from service.engine.scheduler import Scheduler
from service.engine.sequence import (
    FinishReason,
    Job,
    SamplingParams,
    Sequence,
    SequenceOutput,
    SequenceRequest,
    SequenceStats,
    TokenLogprob,
)
from service.engine.speculator import Speculator
from service.engine.step_cost import Budget, StepCost

_SCRATCH = tempfile.TemporaryDirectory(prefix="tiny-gpt2-")
atexit.register(_SCRATCH.cleanup)

DEVICE = os.environ.get("TEXTGEN_TEST_DEVICE", "cpu")  # where `real_engine` computes: cpu or cuda

TINY: dict[str, Any] = {"vocab_size": 259, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}
WIDE: dict[str, Any] = {"vocab_size": 1031, "n_positions": 96, "n_embd": 768, "n_layer": 2, "n_head": 12}


# ---- checkpoints ----------------------------------------------------------------------------------------


def draw_model(seed: int = 0, **config: Any) -> GPT2LMHeadModel:
    """A GPT-2 of transformers with random weights, logits of standard deviation about 2."""
    torch.manual_seed(seed)
    settings = {**TINY, "bos_token_id": 0, "eos_token_id": 0, **config}
    model = GPT2LMHeadModel(GPT2Config(**settings, attn_implementation="eager"))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(_weights(name, tensor.shape, model.config.n_embd))
    return model.eval()


def _weights(name: str, shape: torch.Size, width: int) -> torch.Tensor:
    noise = torch.randn(shape)
    if name.endswith(("wte.weight", "lm_head.weight")):
        return noise * 2 / width**0.5
    if ".ln_" in name or "ln_f" in name:
        return noise * 0.2 + (1.0 if name.endswith("weight") else 0.0)
    return noise * (0.3 if len(shape) == 1 else 1 / shape[0] ** 0.5)


@functools.cache
def checkpoint(seed: int = 0, **config: Any) -> Path:
    """Folder of a random checkpoint; made once for each set of arguments."""
    folder = Path(tempfile.mkdtemp(dir=_SCRATCH.name))
    draw_model(seed, **config).save_pretrained(folder)
    return folder


def wide_checkpoint() -> Path:
    """Folder of a checkpoint as wide as the smallest GPT-2: tiny shapes hide how libraries split sums."""
    return checkpoint(7, **WIDE)


# ---- tokens ---------------------------------------------------------------------------------------------


class BytePieces:
    """A tokenizer whose token i is byte i; the last id ends a text, ids between are empty."""

    def __init__(self, vocab_size: int = 259) -> None:
        self.eos_id = vocab_size - 1

    def piece(self, previous_id: int | None, token_id: int) -> bytes:
        """See `TokenPieces`."""
        return bytes([token_id]) if token_id < 256 else b""

    def is_special(self, token_id: int) -> bool:
        """See `TokenPieces`."""
        return token_id >= 256

    def special_piece(self, previous_id: int | None, token_id: int) -> bytes:
        """See `TokenPieces`."""
        return f"<{token_id}>".encode()


class LetterPieces:
    """A tokenizer whose tokens are a small letter each, for texts that are easy to read."""

    def __init__(self, vocab_size: int) -> None:
        self.eos_id = vocab_size - 1

    def piece(self, previous_id: int | None, token_id: int) -> bytes:
        """See `TokenPieces`."""
        return b"" if token_id == self.eos_id else bytes([97 + token_id % 26])

    def is_special(self, token_id: int) -> bool:
        """See `TokenPieces`."""
        return token_id == self.eos_id

    def special_piece(self, previous_id: int | None, token_id: int) -> bytes:
        """See `TokenPieces`."""
        return f"<{token_id}>".encode()


# ---- engines --------------------------------------------------------------------------------------------


def real_engine(folder: Path, *, num_blocks: int = 64, **config: Any) -> Engine:
    """An engine with a model: exact in float32 unless told otherwise; torch computes on one thread, since
    threads that meet after every small operation wait for each other on a busy machine.
    """
    is_native = config.get("backend") == "cpu"
    device = "cpu" if is_native else DEVICE
    settings: dict[str, Any] = {
        "device": device, "precision": "float32", "backend": "reference", "is_deterministic": True,
        "max_batch_tokens": 64, "max_running": 16, "speculation": False,
        "num_threads": 0 if is_native else 1, **config,
    }  # fmt: skip
    width = GPT2Config.from_pretrained(folder)
    element = 4 if settings["precision"] == "float32" else 2
    block_bytes = 16 * 2 * width.n_layer * width.n_embd * element
    config_ = EngineConfig(folder=folder, kv_cache_bytes=num_blocks * block_bytes, **settings)
    return build_engine(config_, BytePieces(width.vocab_size))


class FakeRunner:
    """A runner without a model: the next id is a function of the ids before it.

    It keeps what a real cache would hold and checks, before every step, that each sequence's blocks hold
    exactly the keys and values of its own tokens. `fault` may raise in place of the step.
    """

    def __init__(self, vocab_size: int = 13, block_size: int = 4) -> None:
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.cache: dict[tuple[int, int], int] = {}  # (block, place) -> hash of the ids up to there
        self.num_rows = 0  # ever
        self.batches: list[Batch] = []
        self.before: Callable[[Batch], None] = lambda batch: None

    def next_id(self, ids: Seq[int]) -> int:
        """The id that follows `ids`; often periodic, so that drafts are often right."""
        return (zlib.crc32(bytes(ids[-2:])) + (len(ids) % 7 == 0)) % self.vocab_size

    def candidates(self, ids: Seq[int]) -> Candidates:
        """Every token, each as likely as the ids before it say."""
        likely = {i: -1 - zlib.crc32(bytes([*ids[-3:], i])) % 997 / 250 for i in range(self.vocab_size)}
        ranked = sorted(likely, key=lambda i: -likely[i])
        return Candidates(tuple(ranked), tuple(likely[i] for i in ranked))

    def execute(self, batch: Batch) -> list[StepOutput]:
        """See `Runner`."""
        self.before(batch)
        for source, target in (item.copied for item in batch.items if item.copied is not None):
            for at in range(self.block_size):
                if (source, at) in self.cache:
                    self.cache[target, at] = self.cache[source, at]
        self.num_rows += batch.num_rows
        self.batches.append(batch)
        return [
            self._run(item.sequence, item.num_tokens, item.draft_ids, item.samples) for item in batch.items
        ]

    def _run(self, s: Sequence, count: int, drafts: tuple[int, ...], samples: bool) -> StepOutput:
        assert count > 0, "an item without rows"
        start = s.num_computed_tokens
        ids = [*s.token_ids[: start + count], *drafts]
        hashes = _running_hashes(ids)
        for at in range(start):
            assert self.cache[self._place(s, at)] == hashes[at], f"position {at} holds foreign keys"
        for at in range(start, len(ids)):
            self.cache[self._place(s, at)] = hashes[at]
        if not samples:
            return StepOutput()
        if s.params.num_beams > 1:
            return StepOutput(candidates=self.candidates(ids))
        new: list[int] = []
        for end in range(start + count, len(ids) + 1):
            new.append(self.next_id(ids[:end]))
            if end < len(ids) and ids[end] != new[-1]:
                break
        return StepOutput(tuple(new), tuple(TokenLogprob(i, -1.0) for i in new))

    def _place(self, s: Sequence, at: int) -> tuple[int, int]:
        return s.block_table[at // self.block_size], at % self.block_size


def _running_hashes(ids: Seq[int]) -> list[int]:
    state, hashes = 0, []
    for i in ids:
        state = zlib.crc32(bytes([i]), state)
        hashes.append(state)
    return hashes


class Clock:
    """A clock that moves when told, and a little whenever it is read."""

    def __init__(self, tick_s: float = 0.001) -> None:
        self.now = 1000.0
        self.tick_s = tick_s

    def __call__(self) -> float:
        self.now += self.tick_s
        return self.now


def fake_engine(
    *,
    num_blocks: int = 64,
    max_rows: int = 32,
    max_running: int = 8,
    share: int | None = None,
    speculation: bool = False,
    runner: FakeRunner | None = None,
) -> Engine:
    """An engine around a `FakeRunner`, blocks of 4 tokens."""
    runner = runner or FakeRunner()
    cost = StepCost(min_prefill_rows=max_rows)  # prefill waits for nobody
    speculator = Speculator(cost, max_rows) if speculation else None
    scheduler = Scheduler(
        BlockPool(num_blocks, runner.block_size),
        Budget(max_rows, max_running),
        cost,
        speculator,
    )
    scheduler.places.share = share or max_running
    return Engine(scheduler, runner, LetterPieces(runner.vocab_size), clock=Clock())


class Guesses:
    """A drafter that proposes what a test wants."""

    num_drafted = num_accepted = num_model_drafted = num_model_accepted = 0

    def __init__(self, draft: Callable[[list[Sequence]], dict[Sequence, tuple[int, ...]]]) -> None:
        self.draft = draft

    def note(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learns nothing."""


# ---- running --------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Everything one sequence gave."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str = ""
    stats: SequenceStats | None = None

    def note(self, output: SequenceOutput) -> None:
        """Add one step's news."""
        assert self.finish_reason is None, "news after the end"
        self.text += output.text
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        self.finish_reason, self.error, self.stats = output.finish_reason, output.error, output.stats

    @property
    def said(self) -> tuple[object, ...]:
        """What must be equal, bit for bit, however the sequence was computed."""
        return self.text, self.token_ids, self.logprobs, self.prompt_logprobs, self.finish_reason


def ask(prompt: Iterable[int], ordinal: int = 0, **params: Any) -> SequenceRequest:
    """A request; greedy unless told otherwise."""
    return SequenceRequest(tuple(prompt), SamplingParams(**{"temperature": 0.0, **params}), ordinal)


def sequences(
    requests: Iterable[SequenceRequest], job: Job | None = None, now: float = 0.0
) -> list[Sequence]:
    """The sequences of one job."""
    job = job or Job()
    return [Sequence(job, index, r, now) for index, r in enumerate(requests)]


def separate(requests: Iterable[SequenceRequest], now: float = 0.0) -> list[Sequence]:
    """One job for each request."""
    return [Sequence(Job(), 0, r, now) for r in requests]


class Watch:
    """Steps an engine and keeps what every sequence said."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outcomes: dict[Sequence, Outcome] = {}

    def add(self, added: Iterable[Sequence]) -> list[Outcome]:
        """Add sequences; their outcomes fill while the engine steps."""
        found = []
        for sequence in added:
            self.engine.add(sequence)
            found.append(self.outcomes.setdefault(sequence, Outcome()))
        return found

    def step(self) -> None:
        """One step, with the block accounts checked after it."""
        for sequence, output in self.engine.step():
            self.outcomes[sequence].note(output)
        self.engine.scheduler.check()

    def finish(self, most_steps: int = 20_000) -> None:
        """Step until nothing is left."""
        for _ in range(most_steps):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")


def run_all(engine: Engine, added: Iterable[Sequence]) -> list[Outcome]:
    """Run sequences together to their end."""
    watch = Watch(engine)
    outcomes = watch.add(added)
    watch.finish()
    return outcomes


def run_alone(engine: Engine, asked: SequenceRequest) -> Outcome:
    """Run one sequence to its end."""
    return run_all(engine, separate([asked]))[0]


def reference_logits(folder: Path, ids: Seq[int]) -> torch.Tensor:
    """transformers' logits at every position of `ids`: (len(ids), vocab)."""
    return _loaded(folder)(torch.tensor([list(ids)])).logits[0].detach()


@functools.cache
def _loaded(folder: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()


@functools.cache
def loaded_gpt2(folder: Path, backend: Any) -> GPT2:
    """This project's model of a checkpoint."""
    return GPT2.load(folder, backend)
