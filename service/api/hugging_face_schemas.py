"""Bodies of Hugging Face's clients (`inputs` and `parameters`), as TGI and the inference API take them.

Parameters have our names where both have them. What nothing reads is ignored and told, as at `/v1`; what
would change the answer and cannot be done is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, JsonValue, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from model_store.sampling import OPTIONS, SAMPLING
from service.api.fields import body_field, check_range, read_texts, sampling_fields, table_field
from service.api.openai_fields import OpenAIBody
from service.api.structured import of_tgi_grammar
from service.errors import InvalidRequest
from service.tasks.calls import GenerateCall, Origin, QaCall, SamplingFields, SummarizeCall

# What is understood and not done, with the values that ask for nothing.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "adapter_id": (),
    "watermark": (False,),
}
_DRAWN = ("temperature", "top_k", "top_p", "min_p")  # any of them asks for a draw

if TYPE_CHECKING:
    _Sampling = OpenAIBody
else:
    _Sampling = create_model("_Sampling", __base__=OpenAIBody, **sampling_fields())


class Parameters(_Sampling):
    """How a text is to be continued."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = _REFUSED

    do_sample: bool = body_field(False, "true or false: whether tokens are drawn, or the likeliest taken")
    return_full_text: bool = body_field(False, "true or false: whether the prompt stands before the text")
    details: bool = body_field(False, "true or false")
    decoder_input_details: bool = body_field(
        False, "true or false: the prompt's tokens too, with details only"
    )
    best_of: int = table_field(OPTIONS["n"], 1, "an integer from 1 to 16: of so many, the likeliest")
    num_return_sequences: int = table_field(OPTIONS["n"], 1)
    top_n_tokens: int = table_field(OPTIONS["logprobs"], None, "an integer from 0 to 20, with details only")
    truncate: int = body_field(None, "an integer from 1: so many of the prompt's last tokens are read", ge=1)
    grammar: dict[str, JsonValue] = body_field(
        None, "an object with the type json, json_schema or regex, and the schema or the expression as value"
    )
    max_length: int = body_field(None, "an integer from 1: max_new_tokens of a summary", ge=1)
    min_length: int = body_field(None, "an integer from 0: min_new_tokens of a summary", ge=0)

    def check_refused(self, takes_grammar: bool = False) -> None:
        """Raise `InvalidRequest` for a parameter that asks for what is not there."""
        if self.grammar is not None and not takes_grammar:
            raise InvalidRequest("grammar must be left out: it is for generation only", "grammar")
        self.check_understood()
        if self.sampling().get("num_beams", 1) > 1 and (self.do_sample or self.best_of > 1):
            name = "do_sample" if self.do_sample else "best_of"
            legal = "false" if self.do_sample else "1"
            text = f"{name} must be {legal} with num_beams above 1, where nothing is drawn"
            raise InvalidRequest(text, name)
        for name, option in (("best_of", "n"), ("num_return_sequences", "n"), ("top_n_tokens", "logprobs")):
            check_range(name, getattr(self, name), OPTIONS[option])

    def sampling(self) -> SamplingFields:
        """Our fields as given; greedy unless `do_sample` or a field that draws says so, as for TGI."""
        given: SamplingFields = {
            name: value for name in SAMPLING if (value := getattr(self, name)) is not None
        }
        if given.get("top_p") == 0:
            given |= {"top_p": 1.0, "temperature": 0.0}
        is_drawn = self.do_sample or any(name in given for name in _DRAWN)
        return given if is_drawn else {**given, "temperature": 0.0}


class _HuggingFaceBody(OpenAIBody):
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    parameters: Parameters = body_field(Parameters(), "an object")
    options: dict[str, Any] = body_field(None, "an object; not used")
    model: str = body_field("", "not used")


def _parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a body as it came; none where they are no object."""
    parameters = given.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


class GenerationBody(_HuggingFaceBody):
    """A prompt to be continued."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": "Once upon a time", "parameters": {"max_new_tokens": 16}}]}
    )

    inputs: str = body_field(..., "a string")
    stream: bool = body_field(False, "true or false")

    @classmethod
    def spelling(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """See `Body`."""
        parameters = _parameters(given)
        several = "best_of" if parameters.get("best_of") not in (None, 1) else "num_return_sequences"
        names = {"prompt": "inputs", "n": several, "logprobs": "top_n_tokens", "constraint": "grammar"}
        return {**super().spelling(given), **names}

    def to_call(self, origin: Origin) -> GenerateCall:
        """The task call. Raises InvalidRequest for options that contradict each other."""
        given = self.parameters
        given.check_refused(takes_grammar=True)
        for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if getattr(given, name) is not None:
                raise InvalidRequest(f"{name} must be left out: it is for a summary; use {instead}", name)
        if given.best_of > 1 and (origin.is_streamed or given.num_return_sequences > 1):
            raise InvalidRequest("best_of must be 1 in a stream and beside num_return_sequences", "best_of")
        if given.decoder_input_details and (origin.is_streamed or not given.details):
            text = "decoder_input_details needs details: true, and no stream"
            raise InvalidRequest(text, "decoder_input_details")
        return GenerateCall(
            (self.inputs,),
            max(given.best_of, given.num_return_sequences),
            echo=given.decoder_input_details,
            logprobs=given.top_n_tokens or 0,
            constraint=None if given.grammar is None else of_tgi_grammar(given.grammar),
            keeps_last=given.truncate,
            sampling=given.sampling(),
            origin=origin,
        )


class SummarizationBody(_HuggingFaceBody):
    """Texts to be summarized."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "The ship left at dawn. …"}]})

    inputs: Annotated[
        tuple[str, ...],
        BeforeValidator(read_texts),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    ] = body_field(..., "a string, or a list of strings")

    @classmethod
    def spelling(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """See `Body`."""
        parameters, names = _parameters(given), {"text": "inputs"}
        for ours, theirs in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if parameters.get(ours) is None and parameters.get(theirs) is not None:
                names[ours] = theirs
        return {**super().spelling(given), **names}

    def to_calls(self, origin: Origin) -> list[SummarizeCall]:
        """One task call for each text."""
        given = self.parameters
        given.check_refused()
        sampling = given.sampling()
        if not given.do_sample:
            sampling.pop("temperature", None)
        if given.max_length is not None:
            sampling.setdefault("max_new_tokens", given.max_length)
        if given.min_length:
            sampling.setdefault("min_new_tokens", given.min_length)
        return [SummarizeCall(text, sampling=sampling, origin=origin) for text in self.inputs]


def _question(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(value.get(k), str) for k in ("question", "context")):
        raise PydanticCustomError("question", "no question")
    return {"question": value["question"], "context": value["context"]}


class QuestionParameters(OpenAIBody):
    """How a question is to be answered."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    top_k: int = table_field(OPTIONS["num_answers"], 1)
    handle_impossible_answer: bool = body_field(False, "true or false: whether there may be no answer")


class QuestionBody(OpenAIBody):
    """A question and the text that answers it."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": {"question": "Who left?", "context": "The ship left."}}]}
    )

    inputs: Annotated[
        dict[str, str],
        BeforeValidator(_question),
        WithJsonSchema(
            {
                "type": "object",
                "properties": {"question": {"type": "string"}, "context": {"type": "string"}},
                "required": ["question", "context"],
            }
        ),
    ] = body_field(..., "an object with question and context, both strings")
    parameters: QuestionParameters = body_field(QuestionParameters(), "an object")
    options: dict[str, Any] = body_field(None, "an object; not used")
    model: str = body_field("", "not used")

    @classmethod
    def spelling(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """See `Body`."""
        inputs = {name: f"inputs.{name}" for name in ("question", "context")}
        return {**inputs, "num_answers": "top_k", "no_answer": "handle_impossible_answer"}

    def to_call(self, origin: Origin) -> QaCall:
        """The task call."""
        given = self.parameters
        may_fail = given.handle_impossible_answer
        question, context = self.inputs["question"], self.inputs["context"]
        return QaCall(question, context, given.top_k, may_fail, origin=origin)
