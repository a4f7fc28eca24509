"""What the bodies of the OpenAI dialect share: `null` means absent, an unknown field is ignored and told.

A field that would change the answer and cannot be honoured is refused by name, unless it asks for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, create_model, model_validator

from model_store.sampling import SAMPLING
from service.api.fields import Body, body_field, sampling_fields
from service.errors import InvalidRequest
from service.tasks.calls import SamplingFields

BEAM_SEARCH = "true or false: whether n, num_beams or best_of is the width of a beam search"
MAX_TOLD = 32  # ignored fields that a reply names
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
SPELLINGS = {
    "logitBias": "logit_bias",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_sequences": "stop",
}

# What is understood and not done, with the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "prompt_logprobs": (0, False),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "web_search_options": (),
}
_SWITCHES = {"functions": "function_call", "tools": "tool_choice"}  # "none" asks for nothing of the first


class OpenAIBody(Body):
    """An object of the OpenAI dialect, where `null` means absent and what is unknown is ignored."""

    model_config = ConfigDict(extra="allow")
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = REFUSED

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        for theirs, ours in SPELLINGS.items():
            if theirs in given and ours in cls.model_fields and ours not in given:
                given[ours] = given.pop(theirs)
        return given

    @classmethod
    def spelling(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """See `Body`; those of objects within, too."""
        names: dict[str, str] = {}
        for name, inner in given.items():
            kind = cls.model_fields[name].annotation if name in cls.model_fields else None
            if isinstance(inner, dict) and isinstance(kind, type) and issubclass(kind, Body):
                names |= kind.spelling(inner)
        written = {
            ours: theirs
            for theirs, ours in SPELLINGS.items()
            if ours in cls.model_fields and given.get(theirs) is not None and given.get(ours) is None
        }
        if given.get("use_beam_search") and given.get("num_beams") is None:
            names["num_beams"] = "best_of" if given.get("best_of") else "n"
        renamed = {ours: here for ours, here in RENAMED.items() if here in cls.model_fields}
        return names | {ours: written.get(here, here) for ours, here in renamed.items()} | written

    def check_understood(self) -> None:
        """Raise `InvalidRequest` for a field that asks for what is not there."""
        for name, value in self._refused_and_given():
            if not self._is_switched_off(name) and value not in self.refused[name]:
                otherwise = f', or set {_SWITCHES[name]} to "none"' if name in _SWITCHES else ""
                raise InvalidRequest(f"{name} is not supported; leave it out{otherwise}", name)

    def ignored(self) -> Iterator[str]:
        """The names of fields that nothing reads, those of objects within as `outer.inner`."""
        for name in self.__pydantic_extra__ or {}:
            if name not in self.refused:
                yield name_told(name)
        for name, value in self._refused_and_given():
            if self._is_switched_off(name) and value not in self.refused[name]:
                yield name
        for name in type(self).model_fields:
            if isinstance(inner := getattr(self, name), OpenAIBody):
                yield from (f"{name}.{each}" for each in inner.ignored())

    def _refused_and_given(self) -> Iterator[tuple[str, Any]]:
        return (
            (name, value) for name, value in (self.__pydantic_extra__ or {}).items() if name in self.refused
        )

    def _is_switched_off(self, name: str) -> bool:
        return (self.__pydantic_extra__ or {}).get(_SWITCHES.get(name, "")) == "none"


def name_told(name: str) -> str:
    """A field's name as a reply may name it: it is the client's, and goes into a header."""
    return name if _NAME.fullmatch(name) else "?"


class StreamOptions(OpenAIBody):
    """What a stream tells besides its tokens."""

    include_usage: bool = body_field(False, "true or false")
    continuous_usage_stats: bool = body_field(False, "true or false: the usage so far with every chunk")
    include_obfuscation: bool = body_field(False, "true or false; accepted, nothing is obfuscated")


@lru_cache
def legal_of(body: type[Body]) -> Mapping[str, str]:
    """Legal values in words, by field name, those of objects within too, for messages."""
    legal: dict[str, str] = {}
    for name, item in body.model_fields.items():
        if isinstance(item.annotation, type) and issubclass(item.annotation, Body):
            legal |= legal_of(item.annotation)
        legal[name] = item.description or ""
    return legal


# What the fields of the table are called here.
RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
OURS = {name: name for name in SAMPLING} | RENAMED
DEFAULTS = {name: field.neutral for name, field in SAMPLING.items()}


def make_base(name: str, defaults: Mapping[str, Any]) -> Any:
    """A body with the sampling fields of the table under their names here.

    Args:
        name: of the class.
        defaults: of those that do not take the task's own.
    """
    fields: Any = sampling_fields({ours: OURS.get(ours) for ours in SAMPLING}, defaults)
    return create_model(name, __base__=OpenAIBody, **fields)


if TYPE_CHECKING:
    OpenAISampling = OpenAIBody
else:
    OpenAISampling = make_base("OpenAISampling", DEFAULTS)


def samples_of(body: OpenAIBody) -> int:
    """Choices of each prompt: `n`, or by transformers' name for it."""
    return max(getattr(body, "n", 1), getattr(body, "num_return_sequences", None) or 1)


def sampling_given(body: OpenAIBody) -> SamplingFields:
    """The sampling fields of a body by our names; what other servers take for "off" is read as such."""
    given: SamplingFields = {ours: getattr(body, theirs) for ours, theirs in OURS.items()}
    given = {name: value for name, value in given.items() if value is not None}
    if getattr(body, "use_beam_search", False) and given.get("num_beams", 1) == 1:  # as vLLM reads it
        given["num_beams"] = max(samples_of(body), getattr(body, "best_of", None) or 1)
        given |= {"temperature": 0.0} if given["num_beams"] == 1 else {}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if given.get("max_new_tokens") == -1:
        del given["max_new_tokens"]
    if given.get("top_p") == 0:  # of nothing but the likeliest token
        given |= {"top_p": 1.0, "temperature": 0.0}
    return given
