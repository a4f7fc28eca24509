"""Reads a tokenizer's files: which tokenizer it is, which tokens are special, which end a text.

`tokenizer.json` loads in milliseconds; `vocab.json` with `merges.txt` and BERT's `vocab.txt` are assembled
here, all without importing transformers, which is asked only for formats that none of these is. No encoding
here: see `model_store/tokenizer.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from model_store.errors import TokenizerError

PieceStyle = Literal["byte_level", "wordpiece", "metaspace"]

_SPECIAL_KEYS = ("eos_token", "bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_USUAL_ENDS = ("<|endoftext|>", "[SEP]", "</s>", "<eos>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """What the files say.

    Args:
        backend: A `tokenizers.Tokenizer` without truncation, padding or post-processing.
        style: How a token's name becomes bytes.
        eos_token_ids: The tokens that end a text, the main one first; at least one.
    """

    backend: Any
    style: PieceStyle
    eos_token_ids: tuple[int, ...]


def load_files(folder: Path) -> LoadedTokenizer:
    """Read the tokenizer of a Hugging Face model folder.

    Raises:
        TokenizerError: Nothing to read, broken files, an unsupported kind, or no token that ends a text.
    """
    config = _read_json(folder / "tokenizer_config.json")
    backend = _load_backend(folder, config)
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = tokenizers.processors.Sequence([])  # offsets keep the space before a word
    _mark_specials(backend, folder, config)
    return LoadedTokenizer(backend, _style_of(backend), _find_eos(backend, folder, config))


def _load_backend(folder: Path, config: dict[str, Any]) -> Any:
    try:
        if (folder / "tokenizer.json").is_file():
            return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _from_merges(folder, config)
        if (folder / "vocab.txt").is_file():
            return _from_vocab_txt(folder, config)
    except Exception as error:  # the Rust side raises bare Exception
        raise TokenizerError(f"the tokenizer in {folder.name} cannot be read: {error}") from error
    return _from_transformers(folder)


def _from_merges(folder: Path, config: dict[str, Any]) -> Any:
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    backend = tokenizers.Tokenizer(model)
    has_prefix = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix)
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, folder)
    return backend


def _from_vocab_txt(folder: Path, config: dict[str, Any]) -> Any:
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocab = {line.rstrip("\r"): place for place, line in enumerate(lines) if line.rstrip("\r")}
    if "[UNK]" not in vocab:
        raise TokenizerError("vocab.txt has no [UNK]: not a BERT vocabulary")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    _add_tokens(backend, folder)
    return backend


def _from_transformers(folder: Path) -> Any:
    """Let transformers convert a SentencePiece model; with no file it would make up an empty tokenizer."""
    if not any(folder.glob("*.model")):
        raise TokenizerError(
            f"{folder.name} has no tokenizer.json, vocab.json + merges.txt, vocab.txt or SentencePiece .model"
        )
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return tokenizers.Tokenizer.from_str(slow.backend_tokenizer.to_str())
    except Exception as error:  # whatever a converter stumbles over
        reason = str(error).strip().split("\n")[0]
        raise TokenizerError(
            f"transformers cannot convert the tokenizer of {folder.name}: {reason}"
        ) from error


def _add_tokens(backend: Any, folder: Path) -> None:
    """Add the tokens of `added_tokens.json`, in the order of their ids."""
    added = _read_json(folder / "added_tokens.json")
    for content, token_id in sorted(added.items(), key=lambda item: int(item[1])):
        backend.add_tokens([tokenizers.AddedToken(content, normalized=False)])
        if backend.token_to_id(content) != token_id:
            raise TokenizerError(f"added_tokens.json: {content!r} cannot have the id {token_id}")


def _mark_specials(backend: Any, folder: Path, config: dict[str, Any]) -> None:
    """Make the tokens that the configuration calls special so, if the vocabulary has them."""
    named = {**_read_json(folder / "special_tokens_map.json"), **config}
    contents = [_content(named.get(key)) for key in _SPECIAL_KEYS]
    if isinstance(backend.model, models.WordPiece):
        contents += _BERT_SPECIALS
    contents += ["<|endoftext|>"]
    known = {content for content in contents if content and backend.token_to_id(content) is not None}
    marks = [tokenizers.AddedToken(name, special=True, normalized=False) for name in sorted(known)]
    backend.add_special_tokens(marks)


def _find_eos(backend: Any, folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Collect the ids that end a text: the tokenizer's own, then the model's, else the usual names."""
    named = {**_read_json(folder / "special_tokens_map.json"), **config}
    ids = [backend.token_to_id(_content(named.get("eos_token")))]
    model_config = _read_json(folder / "generation_config.json") or _read_json(folder / "config.json")
    given = model_config.get("eos_token_id")
    ids += given if isinstance(given, list) else [given]
    ids = [i for i in ids if isinstance(i, int) and i >= 0 and backend.id_to_token(i) is not None]
    if not ids:
        ids = [i for i in map(backend.token_to_id, _USUAL_ENDS) if i is not None][:1]
    if not ids:
        raise TokenizerError("no token ends a text; name one as eos_token in tokenizer_config.json")
    return tuple(dict.fromkeys(ids))


def _style_of(backend: Any) -> PieceStyle:
    """Tell from the decoder how tokens become text."""
    parts = _decoder_types(backend)
    if "ByteLevel" in parts:
        return "byte_level"
    if "WordPiece" in parts:
        return "wordpiece"
    if parts & {"Metaspace", "ByteFallback", "Replace"}:
        return "metaspace"
    kind = f"{type(backend.model).__name__} with decoder {'+'.join(sorted(parts)) or 'none'}"
    raise TokenizerError(
        f"a tokenizer of kind {kind} is not supported; supported are byte-level BPE, WordPiece, SentencePiece"
    )


def _decoder_types(backend: Any) -> set[str]:
    """The decoder's parts by type; a byte-level one is implied where only the pre-tokenizer is there."""
    if backend.decoder is None:
        is_byte_level = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        return {"ByteLevel"} if is_byte_level else set()
    state = json.loads(backend.decoder.__getstate__())  # the whole tokenizer's JSON would take a second
    found = {state["type"]} | {part["type"] for part in state.get("decoders", [])}
    return found - {"Sequence"}


def _content(token: object) -> str:
    """A special token is written as a string or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there is an empty one."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{path.name} must hold a JSON object")
    return values
