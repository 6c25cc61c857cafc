"""Every way in which a server says no, in OpenAI's form.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

400 invalid_request_error   what was asked cannot be done
401 authentication_error    no key, or a wrong one
404, 405                    no such route, model, or method
408, 413, 415               the body is too slow, too large, or no JSON
422                         an image that cannot be read
429 rate_limit_error        too many requests wait; come back after Retry-After seconds
500 server_error            ours; nothing of it is told
503 server_error            shutting down, or out of time
"""

from __future__ import annotations

from typing import Any

from isthmus.errors import (
    EngineClosed,
    FetchError,
    ImageError,
    InputError,
    Interrupted,
    IsthmusError,
    MissingExtraError,
    QueueFull,
)

RETRY_AFTER_S = 1

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refusal(IsthmusError):
    """A request is not answered.

    Args:
        status: HTTP status.
        message: What was got, what was expected, how to mend it.
        code: A short name of the reason.
        param: Which part of the request it is about, such as "messages.0.content".
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        if self.status in (429, 503):
            return {"Retry-After": str(RETRY_AFTER_S)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    @property
    def body(self) -> dict[str, Any]:
        """The error as clients expect it.

        Example:
            >>> Refusal(404, "no such model", "model_not_found", "model").body["error"]["type"]
            'not_found_error'
        """
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error; nothing of one that was not raised on purpose."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Interrupted) and error.late:
        return Refusal(503, f"{error}: the server is busy, come back later", "timeout")
    if isinstance(error, Interrupted):
        return Refusal(503, "the server is shutting down", "shutting_down")
    if isinstance(error, QueueFull):
        return Refusal(429, f"{error}; come back in a moment", "queue_full")
    if isinstance(error, EngineClosed):
        return Refusal(503, "the server is shutting down", "shutting_down")
    if isinstance(error, FetchError) and error.refused:
        return Refusal(400, str(error), "invalid_image_url")
    if isinstance(error, ImageError):
        return Refusal(422, str(error), "invalid_image")
    if isinstance(error, MissingExtraError):
        return Refusal(500, "the server lacks a part that this needs", "internal_error")
    if isinstance(error, InputError):
        return Refusal(400, str(error), "invalid_value")
    return Refusal(500, "the server failed on this request; its log says why", "internal_error")
