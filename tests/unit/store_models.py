"""Small tokenizers and checkpoints that the store's tests make for themselves, without any hub."""

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

LINES = [
    "the king went to the sea, and the sea was cold.",
    "计算机科学是一种科学",
    "Text: a\n\nSummary: b",
] * 20
BERT_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"计算机科学\uff0c",
    "hello",
    "wor",
    "##ld",
    "##s",
    ".",
]


def write_byte_level(folder: Path) -> Path:
    """Write tokenizer.json of a byte-level BPE; <|endoftext|> has the id 0."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(LINES, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def write_merges(folder: Path) -> Path:
    """Write the same byte-level BPE as vocab.json and merges.txt."""
    state = json.loads((write_byte_level(folder) / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(state["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder


def write_bert(folder: Path) -> Path:
    """Write the vocab.txt of a BERT-style tokenizer, as Chinese GPT-2s have."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n", encoding="utf-8")
    return folder


def gpt2_state(
    vocab_size: int = 320, n_positions: int = 64, n_embd: int = 16, n_layer: int = 2
) -> dict[str, torch.Tensor]:
    """Draw the tensors of a small GPT-2, large enough that greedy texts differ between seeds."""
    torch.manual_seed(7)
    state = {
        "wte.weight": torch.randn(vocab_size, n_embd),
        "wpe.weight": torch.randn(n_positions, n_embd),
        "ln_f.weight": torch.ones(n_embd),
        "ln_f.bias": torch.zeros(n_embd),
    }
    for layer in range(n_layer):
        for part, rows, columns in (
            ("attn.c_attn", n_embd, 3 * n_embd),
            ("attn.c_proj", n_embd, n_embd),
            ("mlp.c_fc", n_embd, 4 * n_embd),
            ("mlp.c_proj", 4 * n_embd, n_embd),
        ):
            state[f"h.{layer}.{part}.weight"] = torch.randn(rows, columns) * 0.3
            state[f"h.{layer}.{part}.bias"] = torch.zeros(columns)
        for part in ("ln_1", "ln_2"):
            state[f"h.{layer}.{part}.weight"] = torch.ones(n_embd)
            state[f"h.{layer}.{part}.bias"] = torch.zeros(n_embd)
    return {f"transformer.{name}": tensor for name, tensor in state.items()}


def write_config(folder: Path, **changes: object) -> None:
    """Write the config.json of `gpt2_state`'s model."""
    values: dict[str, object] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 320,
        "n_positions": 64,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def write_checkpoint(folder: Path) -> Path:
    """Write a whole small checkpoint in Hugging Face format."""
    write_byte_level(folder)
    write_config(folder)
    save_file(gpt2_state(), folder / "model.safetensors", {"format": "pt"})
    return folder
