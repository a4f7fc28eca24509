"""Tokens that stand beside a tokenizer's vocabulary: special ones, and those that were added after training.

They are written in up to four files, by whichever version of transformers saved the folder. Which file wins,
and in which order new tokens get their ids, is transformers 5's rule. See `model_store/tokenizer_files.py`.
"""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken

from model_store.errors import TokenizerError

_MAX_DIGITS = 10  # of a token's id
# in the order in which new ones get their ids
SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class AddedTokens:
    """What the files of a folder say of such tokens.

    Args:
        config: tokenizer_config.json.
        special_map: special_tokens_map.json; only read where `config` has no `added_tokens_decoder`.
        added: added_tokens.json, text to id; the same.
        defaults: Special tokens by key that the tokenizer's class has where no file names one.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        special_map: Mapping[str, Any],
        added: Mapping[str, Any],
        defaults: Mapping[str, str],
    ) -> None:
        is_new = "added_tokens_decoder" in config
        named = {**defaults, **config, **({} if is_new else special_map)}
        self.special = {key: _content(named[key]) for key in SPECIAL_KEYS if named.get(key)}
        self._named = {key: named[key] for key in self.special}
        extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
        if not isinstance(extra, list | dict):
            raise TokenizerError("extra_special_tokens must be a list or an object of tokens")
        self._extra = list(extra.values()) if isinstance(extra, dict) else list(extra)
        self._extra += [
            value
            for key, value in config.items()
            if key.endswith("_token") and key not in SPECIAL_KEYS and isinstance(value, str)
        ]
        specials = {*self.special.values(), *map(_content, self._extra)}
        if is_new:
            self._by_id = _from_decoder(config["added_tokens_decoder"])
        else:
            if not all(type(token_id) is int for token_id in added.values()):
                raise TokenizerError("added_tokens.json must hold a whole number for each token")
            self._by_id = {token_id: _token(text, text in specials) for text, token_id in added.items()}

    def add_to(self, backend: Any) -> None:
        """Put them into a `tokenizers.Tokenizer`.

        Raises:
            TokenizerError: A file gives a token an id that it cannot have.
        """
        for token_id, token in sorted(self._by_id.items()):
            backend.add_tokens([token])
            if backend.token_to_id(token.content) != token_id:
                raise TokenizerError(f"the added token {token.content!r} cannot have the id {token_id}")
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        for value in (*self._named.values(), *self._extra):
            if _content(value) not in known:
                backend.add_tokens([_token(value, True)])


def _from_decoder(values: object) -> dict[int, AddedToken]:
    if not isinstance(values, dict) or not all(key.isdecimal() and len(key) <= _MAX_DIGITS for key in values):
        raise TokenizerError("tokenizer_config.json: added_tokens_decoder must be an object of tokens by id")
    return {int(token_id): _token(value, False) for token_id, value in values.items()}


def _token(value: object, is_special: bool) -> AddedToken:
    """A token that is written as a text or as an object with `content` and flags."""
    given = value if isinstance(value, dict) else {}
    keys = ("lstrip", "rstrip", "single_word", "normalized", "special")
    flags = {key: given[key] for key in keys if isinstance(given.get(key), bool)}
    is_special = bool(flags.pop("special", is_special)) or is_special
    return AddedToken(_content(value), **{"normalized": not is_special, **flags}, special=is_special)


def _content(value: object) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise TokenizerError(f"a special token must be a text or an object with content, not {value!r:.60}")
    return content


def without_marks(backend: Any, marks: Mapping[int, str]) -> Any:
    """Give a backend for texts in which nothing is a special token, whatever stands there.

    Some vocabularies (SentencePiece's unigrams) hold their special tokens as pieces, which a text would
    become even where they are not looked for. In a copy they keep their ids, under names that no text holds;
    not those that texts are written with (a single character, what merges join): such a one is its text.

    Args:
        backend: With `encode_special_tokens` set.
        marks: The special tokens, by id.
    """
    own = backend.get_vocab(with_added_tokens=False)
    pieces = {token_id: mark for token_id, mark in marks.items() if mark in own}
    if not any(i in backend.encode(f"a{mark}b {mark}").ids for i, mark in pieces.items()):
        return backend
    state = json.loads(backend.to_str())
    model = state["model"]
    letters = {part for merge in model.get("merges", ()) for part in (*merge, "".join(merge))}
    letters.update(mark for mark in marks.values() if len(mark) == 1)
    hidden = {mark: f"\ufdd0{mark}\ufdd0" for mark in marks.values() if mark not in letters}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    for token in state["added_tokens"]:
        token["content"] = hidden.get(token["content"], token["content"])
    copy = type(backend).from_str(json.dumps(state))
    copy.encode_special_tokens = True
    return copy


def with_marks(backend: Any, num_embeddings: int) -> Any:
    """Give a copy of a backend that recognises special tokens, those that have an embedding."""
    state = backend.to_str()
    if max(backend.get_added_tokens_decoder(), default=0) >= num_embeddings:
        edited = json.loads(state)
        edited["added_tokens"] = [token for token in edited["added_tokens"] if token["id"] < num_embeddings]
        state = json.dumps(edited)
    copy = type(backend).from_str(state)
    copy.encode_special_tokens = False
    return copy
