"""Fixtures that several test folders share: a tiny model on disk, real in every respect but its size."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.logs import StandardError, configure_logs

collect_ignore = ["clients"]  # they have an environment of their own: `make test-clients`


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see only the TEXTGEN_* variables that they set themselves."""
    import os

    for name in [name for name in os.environ if name.startswith("TEXTGEN_")]:
        monkeypatch.delenv(name)


class Lines(StandardError):
    """Log lines in a list. Threads of services must not write to `sys.stdout` and `sys.stderr` here: pytest
    replaces these between tests, and a stream that goes while `print` writes to it ends the process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def msg(self, line: str) -> None:
        self.lines.append(line)

    debug = info = warning = error = critical = msg


@pytest.fixture(scope="session", autouse=True)
def log_lines() -> list[str]:
    """What this process has logged."""
    out = Lines()
    configure_logs(out=out)
    return out.lines


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer GPT-2 (64 wide, window 256) with a byte-level tokenizer.

    Weights are drawn wide enough that greedy texts are not one token over and over.
    """
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    vocab_size, eos_id = _save_tokenizer(folder)
    _save_weights(folder, vocab_size, eos_id)
    return folder


def _save_tokenizer(folder: Path) -> tuple[int, int]:
    """A byte-level BPE without merges: every byte is a token, and the end of text one more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(alphabet) + 1, len(alphabet)


def _save_weights(folder: Path, vocab_size: int, eos_id: int) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
