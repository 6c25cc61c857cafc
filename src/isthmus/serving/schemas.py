"""What clients may send, as OpenAI's API has it, and what is ours: `shots` and `reasoning`.

Keys that are not named here are accepted and have no effect: clients send sampling options of many
servers. Those whose absence would change what an answer means are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from isthmus.prompts.answers import AnswerKind

MOST_STOPS = 4
MOST_CHOICES = 8
MOST_SAMPLES = 40
"""Chains of a vote, as many as Wang et al. 2022 draw."""
MOST_TOP_LOGPROBS = 20
UNSERVED = ("tools", "functions", "logit_bias")
OTHER_FORMS = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
)
_SEED = 2**63

Text = Annotated[str, Field(max_length=4_000_000)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Lenient(BaseModel):
    """Types must be right; unknown keys have no effect."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Exact(BaseModel):
    """Types must be right, and a key that is unknown is a mistake."""

    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(Lenient):
    """A text within a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(Lenient):
    """An image as a data URI, or as an https address where the server allows its host."""

    url: str
    detail: str | None = None


def _with_url(value: Any) -> Any:
    """Some clients leave the object out and send the address itself."""
    return {"url": value} if isinstance(value, str) else value


class ImagePart(Lenient):
    """An image within a message."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_with_url)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Lenient):
    """A turn of a conversation; `developer` is `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=1000)] | None = None


class Shot(Exact):
    """A demonstration: images, question, answer, and the steps to it."""

    images: Annotated[list[str], Field(max_length=64)] = Field(
        default_factory=list, description="Images as data URIs."
    )
    question: Text = ""
    answer: Text
    rationale: Text | None = None


class ReasoningOptions(Exact):
    """How to reach an answer in steps, or by a vote."""

    way: Literal["none", "cot", "zero-cot", "least-to-most", "auto"] | None = Field(
        default=None,
        description="At once (none), like the demonstrations' steps (cot), after a trigger "
        "(zero-cot), or over smaller questions (least-to-most); by default cot where a "
        "demonstration has a rationale, else zero-cot.",
    )
    trigger: Annotated[str, Field(max_length=1000)] | None = Field(
        default=None,
        description='A published trigger\'s name or a text; by default "step by step" in the '
        "question's language.",
    )
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = Field(
        default=1, description="Chains that are drawn for each choice, whose answers vote."
    )
    kind: AnswerKind = Field(default="text", description="What the answer is.")
    choices: Annotated[list[str], Field(max_length=26)] = Field(
        default_factory=list, description="The closed answers, of a choice or label."
    )
    max_rationale_tokens: Annotated[int, Field(ge=1)] = Field(
        default=256, description="Most tokens of the steps, or of each smaller question's answer."
    )
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Most tokens of the answer after the steps."
    )


class StreamOptions(Lenient):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class JsonSchema(Lenient):
    """A schema under a name."""

    name: str = ""
    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")


class ResponseFormat(Lenient):
    """The form of an answer: text, any JSON object, or what a JSON schema says.

    The schema is in `json_schema`, as OpenAI has it, or in `schema`, as llama.cpp and others have
    it; either is followed, whichever of the JSON types it comes with.
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _one_schema(self) -> ResponseFormat:
        if self.json_schema is not None and self.schema_ is not None:
            raise PydanticCustomError("two_schemas", "expected one schema, got two")
        if self.type == "text" and (self.json_schema is not None or self.schema_ is not None):
            raise PydanticCustomError(
                "no_schema_for_text",
                'expected the type "json_schema" with a schema, got "text", which follows none',
            )
        return self

    @property
    def followed(self) -> dict[str, Any] | bool | None:
        """The schema that an answer follows; None for text, and where none was given."""
        given = self.schema_ if self.json_schema is None else self.json_schema.schema_
        if self.type == "json_object" and (given is None or given is True or given == {}):
            return {"type": "object"}
        return given


class ChatRequest(Lenient):
    """A request for the next message of a conversation."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=2000)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    seed: Annotated[int, Field(ge=-_SEED, lt=_SEED)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=1000)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1000)]],
            Field(max_length=MOST_STOPS),
        ]
        | None
    ) = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    # Other servers' names for a form of the answer, which would be dropped without a word
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    grammar: Any = None
    json_schema: Any = None
    shots: Annotated[list[Shot], Field(max_length=256)] = Field(
        default_factory=list, description="Demonstrations, shown before the conversation."
    )
    reasoning: (
        bool | Literal["none", "cot", "zero-cot", "least-to-most", "auto"] | ReasoningOptions | None
    ) = Field(
        default=None,
        description="Reach the answer in steps, returned as reasoning_content: a way's name, all "
        "that there is to say, or true (auto).",
    )
    return_prompt: bool = Field(
        default=False, description="Return the exact prompts, <image> where an image stood."
    )


def _no_token_ids(value: Any) -> Any:
    """OpenAI's API takes token ids too; they would be of another tokenizer."""
    first = value[0] if isinstance(value, list) and value else value
    first = first[0] if isinstance(first, list) and first else first
    if isinstance(first, int) and not isinstance(first, bool):
        raise PydanticCustomError(
            "invalid_value",
            "got token ids, which are of another model's tokenizer: expected a text, or a list of "
            "texts",
        )
    return value


class EmbeddingRequest(Lenient):
    """A request for the vectors of texts, and of images as data URIs."""

    model: str | None = None
    input: Annotated[
        Annotated[str, Field(min_length=1)]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=2048)
        ],
        BeforeValidator(_no_token_ids),
    ]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None


class ClassifyRequest(Lenient):
    """A request for the labels of images."""

    model: str | None = None
    images: Annotated[list[str], Field(min_length=1)] = Field(description="Images as data URIs.")
    labels: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1)]
    templates: (
        Annotated[str, Field(max_length=1000)]
        | Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=200)]
        | dict[str, list[str]]
    ) = Field(
        default="imagenet-7",
        description="A published set's name, templates with {}, or descriptions by label.",
    )
    multi_label: bool = False
    threshold: Annotated[Number, Field(ge=0, le=1)] | None = None
    top: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="How many labels of each image are returned; all by default."
    )


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error."""

    error: ErrorDetail
