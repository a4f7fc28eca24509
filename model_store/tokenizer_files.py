"""Reads a tokenizer's files: which tokenizer it is, which tokens are special, which begin and end a text.

Right is what transformers 5 makes of the same folder. `tokenizer.json` loads in milliseconds; `vocab.json`
with `merges.txt` and BERT's `vocab.txt` are assembled here, all without importing transformers, which is
asked only for classes with rules of their own. No encoding here: see `model_store/tokenizer.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from model_store.added_tokens import AddedTokens
from model_store.errors import TokenizerError
from model_store.files import is_readable, read_json_if_any

# what a tokenizer is made of; without one of the first three it is converted by transformers each time
_MAIN_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
_FILES = (
    *_MAIN_FILES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "*.model"),
)
PieceStyle = Literal["byte_level", "wordpiece", "metaspace"]

_GPT2, _BERT = "GPT2Tokenizer", "BertTokenizer"
# classes that are their tokenizer.json and nothing else
_PLAIN = ("PreTrainedTokenizer", "PreTrainedTokenizerBase", "TokenizersBackend", "PythonBackend")
_BERT_MARKS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
_USUAL_ENDS = ("<|endoftext|>", "[SEP]", "</s>", "<eos>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """What the files say.

    Args:
        backend: A `tokenizers.Tokenizer` without truncation, padding or post-processing.
        style: How a token's name becomes bytes.
        eos_token_ids: The tokens that end a text, the main one first; at least one.
        bos_ids: The tokens that the tokenizer puts before every text.
        cleans_up: Whether a WordPiece decoder writes no space before punctuation.
        drops_first_space: Whether a SentencePiece decoder leaves out the space that a text begins with.
        frame_ids: What it puts before and after a text when it is asked for all its special tokens.
        named_specials: The texts of special tokens by their names, `eos_token` and so on.
    """

    backend: Any
    style: PieceStyle
    eos_token_ids: tuple[int, ...]
    bos_ids: tuple[int, ...] = ()
    cleans_up: bool = False
    drops_first_space: bool = True
    frame_ids: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    named_specials: Mapping[str, str] = field(default_factory=dict)


def load_files(folder: Path, num_embeddings: int | None = None) -> LoadedTokenizer:
    """Read the tokenizer of a Hugging Face model folder.

    Args:
        folder: Of the model.
        num_embeddings: The model's; an end of text without one is none. None where there is no model yet.

    Raises:
        TokenizerError, UnreadableFile: Nothing to read, broken files, an unsupported kind, or no token that
            ends a text.
    """
    config = read_json_if_any(folder / "tokenizer_config.json")
    backend, defaults = _load_backend(folder, config)
    if not backend.get_vocab(with_added_tokens=False):
        raise TokenizerError("its vocabulary is empty")
    special_map = read_json_if_any(folder / "special_tokens_map.json")
    added = read_json_if_any(folder / "added_tokens.json")
    tokens = AddedTokens(config, special_map, added, defaults)
    tokens.add_to(backend)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    usual = ("<|endoftext|>", *(_BERT_MARKS if isinstance(backend.model, models.WordPiece) else ()))
    for mark in usual:  # special by their names, whatever the files say
        if mark not in known and backend.token_to_id(mark) is not None:
            backend.add_tokens([tokenizers.AddedToken(mark, special=True, normalized=False)])
    frame_ids = _frame_ids(backend, tokens, config, folder)
    bos_ids = () if isinstance(backend.model, models.WordPiece) else frame_ids[0]
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = tokenizers.processors.Sequence([])  # offsets keep the space before a word
    style, cleans_up = _style_of(backend)
    eos_token_ids = _find_eos(backend, folder, tokens.special.get("eos_token", ""), num_embeddings)
    return LoadedTokenizer(
        backend,
        style,
        eos_token_ids,
        bos_ids,
        cleans_up,
        style == "metaspace" and backend.decoder.decode(["\u2581a"]) == "a",
        frame_ids,
        tokens.special,
    )


def tokenizer_files(folder: Path) -> list[Path]:
    """Give the files of a folder that its tokenizer is made of."""
    return [path for pattern in _FILES for path in sorted(folder.glob(pattern)) if is_readable(path)]


def loads_at_once(folder: Path) -> bool:
    """Say whether a tokenizer's files need no conversion."""
    return any(is_readable(folder / name) for name in _MAIN_FILES)


def _class_name(folder: Path, config: Mapping[str, Any]) -> str:
    """The tokenizer's class as transformers 5 chooses it; for a bare vocab.txt, which it refuses, BERT's."""
    named = config.get("tokenizer_class") or read_json_if_any(folder / "config.json").get("tokenizer_class")
    if isinstance(named, str) and named:
        return named.removesuffix("Fast")
    has_gpt2_files = any(is_readable(folder / name) for name in ("tokenizer.json", "vocab.json"))
    return _GPT2 if has_gpt2_files or not is_readable(folder / "vocab.txt") else _BERT


def _load_backend(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
    """The tokenizer without added tokens, and the special tokens that its class has by default.

    Two classes take the vocabulary of a tokenizer.json and make the rest anew.
    """
    kind = _class_name(folder, config)
    if kind not in (_GPT2, _BERT, *_PLAIN):
        return _from_transformers(folder), {}
    if is_readable(folder / "tokenizer.json"):
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        is_bpe = isinstance(backend.model, models.BPE) and "ByteLevel" in _decoder_types(backend)
        if kind == _GPT2 and is_bpe:
            return _as_gpt2(backend, config)
        is_bert = kind == _BERT and isinstance(backend.model, models.WordPiece)
        return _as_bert(backend, config) if is_bert else (backend, {})
    if is_readable(folder / "vocab.json") and is_readable(folder / "merges.txt"):
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        return _as_gpt2(tokenizers.Tokenizer(model), config)
    if is_readable(folder / "vocab.txt"):
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        vocab = {line.rstrip("\r"): index for index, line in enumerate(lines) if line.rstrip("\r")}
        if "[UNK]" not in vocab:
            raise TokenizerError("vocab.txt has no [UNK]: not a BERT vocabulary")
        return _as_bert(tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]")), config)
    return _from_transformers(folder), {}


def _as_gpt2(backend: Any, config: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
    backend.normalizer = None
    has_prefix = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix)
    backend.decoder = decoders.ByteLevel()
    return backend, dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")


def _as_bert(backend: Any, config: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend, {f"{mark.strip('[]').lower()}_token": mark for mark in _BERT_MARKS}


def _from_transformers(folder: Path) -> Any:
    """Let transformers read it; with no file it would make up an empty tokenizer."""
    files = [path for path in (folder / "tokenizer.json", *folder.glob("*.model")) if is_readable(path)]
    if not files:
        raise TokenizerError(
            "it has no tokenizer.json, vocab.json + merges.txt, vocab.txt or SentencePiece .model"
        )
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # whatever a converter stumbles over
        reason = str(error).strip().split("\n")[0]
        raise TokenizerError(f"transformers cannot read it: {reason}") from error


def _frame_ids(
    backend: Any, tokens: AddedTokens, config: Mapping[str, Any], folder: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before a text and after it. Of a prompt only what comes before is sent, since
    the text is to go on; and not the frame that BERT puts around one, whose end would end it.
    """
    if backend.post_processor is None:
        is_bert = isinstance(backend.model, models.WordPiece)
        has_bos = config.get("add_bos_token") and not is_readable(folder / "tokenizer.json")  # which says all
        names = ("cls_token", "sep_token") if is_bert else ("bos_token" if has_bos else "", "")
        before, after = (tokens.special.get(name) for name in names)
        return _as_ids(backend, before), _as_ids(backend, after)
    encoding = backend.encode("a", add_special_tokens=True)
    ids, mask = encoding.ids, encoding.special_tokens_mask
    if 0 not in mask:
        return tuple(ids), ()
    return tuple(ids[: mask.index(0)]), tuple(ids[len(mask) - mask[::-1].index(0) :])


def _as_ids(backend: Any, text: str | None) -> tuple[int, ...]:
    return () if text is None else (backend.token_to_id(text),)


def _find_eos(backend: Any, folder: Path, own: str, num_embeddings: int | None) -> tuple[int, ...]:
    """Collect the ids that end a text: the tokenizer's own, then the model's, else the usual names."""
    size = num_embeddings or max(backend.get_vocab(with_added_tokens=True).values()) + 1
    configs = (read_json_if_any(folder / name) for name in ("generation_config.json", "config.json"))
    given: Any = next((config["eos_token_id"] for config in configs if "eos_token_id" in config), [])
    ids = [backend.token_to_id(own) if own else None, *(given if isinstance(given, list) else [given])]
    ids = [i for i in ids if type(i) is int and 0 <= i < size]
    if not ids:
        ids = [i for i in map(backend.token_to_id, _USUAL_ENDS) if i is not None and i < size][:1]
    if not ids:
        raise TokenizerError("no token ends a text; name one as eos_token in tokenizer_config.json")
    return tuple(dict.fromkeys(ids))


def _style_of(backend: Any) -> tuple[PieceStyle, bool]:
    """Tell from the decoder how tokens become text, and whether it leaves out spaces before punctuation."""
    parts = _decoder_types(backend)
    if "ByteLevel" in parts:
        return "byte_level", False
    if "WordPiece" in parts:
        return "wordpiece", bool(parts["WordPiece"].get("cleanup", True))
    if parts.keys() & {"Metaspace", "ByteFallback", "Replace"}:
        return "metaspace", False
    kind = f"{type(backend.model).__name__} with decoder {'+'.join(sorted(parts)) or 'none'}"
    raise TokenizerError(
        f"a tokenizer of kind {kind} is not supported; supported are byte-level BPE, WordPiece, SentencePiece"
    )


def _decoder_types(backend: Any) -> dict[str, Mapping[str, Any]]:
    """The decoder's parts by type; a byte-level one is implied where only the pre-tokenizer is there."""
    if backend.decoder is None:
        is_byte_level = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        return {"ByteLevel": {}} if is_byte_level else {}
    state = json.loads(backend.decoder.__getstate__())  # the whole tokenizer's JSON would take a second
    return {part["type"]: part for part in (state, *state.get("decoders", [])) if part["type"] != "Sequence"}
