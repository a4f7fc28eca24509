"""GPT-2 checkpoints with random weights of a real shape, for measuring: speed does not depend on the weights.

    python bench/checkpoint.py FOLDER --shape 124m [--peaked]

writes a Hugging Face folder with a byte-level BPE tokenizer whose vocabulary has the real size: its merges
are of the made-up words that `textgen bench` sends, the rest is filled with words that nobody writes, so
that every id has a text. `write_gguf` gives the same model to llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPES = {
    "tiny": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 600},
    "small": {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 1024, "vocab_size": 8192},
    "7m": {"n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 1024, "vocab_size": 8192},
    "124m": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257},
    "355m": {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 50257},
    "774m": {"n_embd": 1280, "n_layer": 36, "n_head": 20, "n_positions": 1024, "vocab_size": 50257},
    "xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024, "vocab_size": 50257},
}
END = "<|endoftext|>"


def make_tokenizer(vocab_size: int) -> Any:
    """Byte-level BPE with exactly `vocab_size` tokens, the end of text last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from service.bench.prompts import Shape, generated

    asks = generated([Shape(200, 1)], seed=1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((next(asks).prompt for _ in range(200)), trainer)
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    for token_id in range(len(vocab), vocab_size - 1):
        vocab[f"\u0120w{token_id}"] = token_id
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer


def make_checkpoint(folder: Path, shape: str, seed: int = 0, peaked: bool = False) -> Path:
    """Write the checkpoint unless the folder holds one already.

    Args:
        folder: where to.
        shape: of `SHAPES`.
        seed: of the weights.
        peaked: most of a token's probability is on a few, as of a trained model; else on thousands.

    Returns:
        The folder.
    """
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(SHAPES[shape]["vocab_size"]).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2TokenizerFast", "eos_token": END, "bos_token": END})
    )
    return make_weights(folder, shape, seed, peaked)


def make_weights(folder: Path, shape: str, seed: int = 0, peaked: bool = False) -> Path:
    """Write weights and configuration only, unless they are there."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = SHAPES[shape]
    end = sizes["vocab_size"] - 1
    torch.manual_seed(seed)
    # wider than GPT-2's own 0.02: with it, random weights say the same token again and again
    config = GPT2Config(**sizes, bos_token_id=end, eos_token_id=end, initializer_range=0.08)
    model = GPT2LMHeadModel(config)
    if peaked:
        with torch.no_grad():
            model.transformer.ln_f.weight *= 4  # logits are as many times as far apart
    model.save_pretrained(folder)
    return folder


def write_gguf(folder: Path, target: Path, kind: str) -> Path:
    """Write the checkpoint for llama.cpp, as its own converter lays GPT-2 out.

    Args:
        folder: of `make_checkpoint`.
        target: the file.
        kind: `bf16`, `f32` or `q8_0` for matrices; vectors stay float32.
    """
    if target.exists():
        return target
    import gguf
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(target.with_suffix(".part"), "gpt2")
    _write_metadata(writer, config, kind)
    _write_vocabulary(writer, json.loads((folder / "tokenizer.json").read_text()), config["vocab_size"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        new_name = _gguf_name(name)
        if new_name is not None:
            _write_tensor(writer, new_name, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.with_suffix(".part").rename(target)
    return target


def _write_metadata(writer: Any, config: dict[str, Any], kind: str) -> None:
    import gguf

    writer.add_name("random-gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    kinds = {"bf16": "MOSTLY_BF16", "f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(getattr(gguf.LlamaFileType, kinds[kind]))


def _write_vocabulary(writer: Any, state: dict[str, Any], vocab_size: int) -> None:
    import gguf

    tokens: list[str] = [""] * vocab_size
    for token, token_id in state["model"]["vocab"].items():
        tokens[token_id] = token
    tokens[-1] = END
    types = [gguf.TokenType.NORMAL] * (vocab_size - 1) + [gguf.TokenType.CONTROL]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocab_size - 1)
    writer.add_eos_token_id(vocab_size - 1)
    writer.add_add_bos_token(False)


_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def _gguf_name(name: str) -> str | None:
    """`h.3.attn.c_attn.weight` -> `blk.3.attn_qkv.weight`; None for what llama.cpp does not want."""
    parts = name.removeprefix("transformer.").split(".")
    layer = ""
    if parts[0] == "h":
        layer, parts = f"blk.{parts[1]}.", parts[2:]
    module = _NAMES.get(".".join(parts[:-1]))
    return f"{layer}{module}.{parts[-1]}" if module else None


def _write_tensor(writer: Any, name: str, tensor: Any, kind: str) -> None:
    import gguf

    is_linear = any(part in name for part in ("attn_qkv", "attn_output", "ffn_"))
    values = tensor.float().numpy()
    if is_linear and name.endswith(".weight") and values.ndim == 2:
        values = values.T.copy()  # Conv1D keeps (in, out), GGUF wants (out, in)
    is_matrix = values.ndim == 2 and "position" not in name and kind != "f32"
    if not is_matrix:
        writer.add_tensor(name, values)
        return
    target = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[kind]
    writer.add_tensor(name, gguf.quantize(values, target), raw_dtype=target)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="124m")
    parser.add_argument("--gguf", choices=("bf16", "f32", "q8_0"), help="also write FOLDER/model-KIND.gguf")
    parser.add_argument("--peaked", action="store_true", help="as a trained model's distribution")
    arguments = parser.parse_args()
    folder = make_checkpoint(arguments.folder, arguments.shape, peaked=arguments.peaked)
    if arguments.gguf:
        write_gguf(folder, folder / f"model-{arguments.gguf}.gguf", arguments.gguf)
    print(folder)


if __name__ == "__main__":
    main()
