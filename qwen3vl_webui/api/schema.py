"""What `/v1/chat/completions` accepts: every field is done or refused, none is read and ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen3vl_webui.errors import Unsupported, UserError


class Strict(BaseModel):
    """Unknown fields and other types are errors; a number is not read out of a string."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Source(Strict):
    """A file as a `data:` URL or the id of an uploaded one; `url` may hold the id as well."""

    url: str | None = None
    file_id: str | None = None


class ImageSource(Source):
    detail: Literal["auto", "high"] | None = None  # both: as large as fits, the only way done here


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageSource


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: Source


class FileSource(Strict):
    file_data: str | None = None  # a `data:` URL
    file_id: str | None = None
    filename: str | None = None


class FilePart(Strict):
    type: Literal["file"]
    file: FileSource


Part = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(Strict):
    role: Literal["user"]
    content: str | list[Part]


class AssistantMessage(Strict):
    """An earlier answer, as it was returned. Earlier reasoning is not shown again, as the model was trained."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Strict):
    include_usage: bool = False


class TextFormat(Strict):
    type: Literal["text"]


class ChatRequest(Strict):
    """`top_k`, `min_p`, `repetition_penalty`, `thinking_budget`, `loop_guard`, `priority` and `zoom` go beyond OpenAI's
    API.

    The fields of the last block are taken at the one value that asks for nothing.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=2000)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # -1 or 0: no limit
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    loop_guard: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = None  # requests of one user share their turns in the queue
    priority: Literal["interactive", "chat", "batch"] | None = None
    zoom: bool | None = None  # read the moments a first answer names again, finer

    n: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    store: Literal[False] | None = None


NEUTRAL = {"n", "frequency_penalty", "logprobs", "logit_bias", "response_format", "modalities", "store"}


def read_chat_request(body: bytes) -> ChatRequest:
    """Raises UserError or Unsupported with the field's place in `param`."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        # A union reports every member that did not match; the deepest says what is wrong.
        worst: Any = max(errors, key=lambda one: len(one["loc"]))
        param = place(worst["loc"])
        if worst["type"] == "extra_forbidden":
            raise Unsupported(f"`{param}` is not supported here. Leave it out.", param=param) from None
        if not param:
            raise UserError("The body is not a valid JSON object.") from None
        if str(worst["loc"][0]) in NEUTRAL:
            raise Unsupported(f"`{param}` has only its neutral value here. Leave it out.", param=param) from None
        raise UserError(f"`{param}`: {worst['msg'].rstrip('.')}.", param=param) from None


def place(steps: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].image_url.url`: pydantic's path without the names of the union members."""
    text, after_index = "", False
    for step in steps:
        if isinstance(step, int):
            text, after_index = f"{text}[{step}]", True
        elif after_index:
            after_index = False  # the tag of the union member in a list
        elif not text or step != "str" and not step.startswith(("list[", "tagged-union", "constrained-", "function-")):
            text += f".{step}" if text else step
    return text
