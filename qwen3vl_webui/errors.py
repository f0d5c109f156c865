"""Errors a person may see. Each message is one clear sentence that says what to do next."""


class UserError(Exception):
    """What went wrong, in a sentence for a person.

    `code` is a stable machine name (the API's `error.code`), `status` the HTTP status the API answers with.
    """

    code = "invalid_request"
    status = 400

    def __init__(self, sentence: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code or type(self).code
        self.param = param


class MediaError(UserError):
    """An upload that cannot be read, or is refused."""

    code = "unreadable_media"


class TooLong(UserError):
    """A prompt that does not fit the context; the sentence names both numbers and what would fit.

    `tokens` is how many the prompt has, where they have been counted.
    """

    code = "context_length_exceeded"

    def __init__(self, sentence: str, *, tokens: int = 0) -> None:
        super().__init__(sentence)
        self.tokens = tokens


class Unsupported(UserError):
    """A setting or field that is not done here, so it is refused rather than ignored."""

    code = "unsupported"


class NotFound(UserError):
    """A conversation, file or model that is not here (or is somebody else's)."""

    code = "not_found"
    status = 404


class NotReady(UserError):
    """The model is still loading, or failed to load."""

    code = "model_not_ready"
    status = 503


class Overloaded(UserError):
    """Too many requests wait already."""

    code = "overloaded"
    status = 429


class OutOfMemory(UserError):
    """The device ran out of memory for this request; the engine goes on."""

    code = "out_of_memory"
    status = 503


class Conflict(UserError):
    """The conversation was changed elsewhere (another tab) since it was read."""

    code = "conflict"
    status = 409


class EngineError(UserError):
    """The engine failed in a way the person cannot mend; the log has the cause."""

    code = "engine_error"
    status = 500


class StorageError(UserError):
    """The data folder cannot be written: full, read-only, over the quota or in use by another process."""

    code = "storage_error"
    status = 507
