"""What the service answers where it cannot do what was asked: a stable code, one sentence, an HTTP status."""

from typing import Any

from unmask.errors import ModelError, Reason, UnmaskError, UsageError
from unmask.records import ErrorInfo, Status, Verdict, VideoScore

__all__ = ["ApiError", "code_of", "error_json", "failure", "from_error"]

_STATUS = {
    "BAD_REQUEST": 400,
    "KEY_REQUIRED": 401,
    "FORBIDDEN": 403,
    "ADDRESS_REFUSED": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "CONFLICT": 409,
    "TOO_LARGE": 413,
    "MEDIA_UNREADABLE": 422,
    "MODEL_UNAVAILABLE": 422,
    "NO_FACE": 422,
    "BUSY": 429,
    "INTERNAL": 500,
    "NOT_READY": 503,
}
_UNREADABLE = {
    Reason.EMPTY_FILE, Reason.UNREADABLE_FILE, Reason.NOT_A_VIDEO, Reason.TRUNCATED_HEADER, Reason.NO_VIDEO_STREAM,
    Reason.UNSUPPORTED_CODEC, Reason.DECODER_CRASHED, Reason.DECODER_HUNG, Reason.NO_FRAMES, Reason.DECODE_FAILED,
    Reason.CORRUPT_FRAME, Reason.MISSING_FRAME, Reason.MISSING_FILE,
}  # fmt: skip
_NO_FACE = {Reason.NO_FACE, Reason.NO_USABLE_FACE, Reason.FACE_TOO_SMALL, Reason.FRAME_TOO_SMALL}


class ApiError(Exception):
    """A request that is refused.

    Args:
        code: One of the codes above, or STREAM_*.
        message: One sentence.
        retry_after_s: When to ask again.
    """

    def __init__(self, code: str, message: str, retry_after_s: int | None = None) -> None:
        self.code, self.retry_after_s = code, retry_after_s
        self.message = message if message.endswith(".") else f"{message}."
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type["ApiError"], tuple[str, str, int | None]]:
        return type(self), (self.code, self.message, self.retry_after_s)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _STATUS.get(self.code, 422)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s is not None else {}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.code == "KEY_REQUIRED" else headers

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": self.message}}


def code_of(reason: Reason | str) -> str:
    """The code of the API for a reason of the core. Reasons for which it has no code of its own keep their names."""
    reason = Reason(reason)
    if reason in _UNREADABLE:
        return "MEDIA_UNREADABLE"
    if reason in _NO_FACE:
        return "NO_FACE"
    return reason.value.upper()


def error_json(error: dict[str, Any] | None) -> dict[str, str] | None:
    """A result's error (`ErrorInfo`) as the API says it."""
    return None if error is None else {"code": code_of(error["code"]), "message": error["message"]}


def failure(shown: str, reason: Reason, message: str) -> dict[str, Any]:
    """The result of a video that could not be analysed; needs no model.

    Args:
        shown: The video's name, as its sender knows it.
        reason: Why.
        message: The same as a sentence.
    """
    error = ErrorInfo(reason, message)
    return VideoScore(id="", input=shown, status=Status.FAILED, verdict=Verdict.INCONCLUSIVE, error=error).to_json()


def from_error(error: UnmaskError) -> ApiError:
    """The answer to a request that made the core raise."""
    if isinstance(error, ModelError):
        return ApiError("MODEL_UNAVAILABLE", error.message)
    if isinstance(error, UsageError):
        return ApiError("BAD_REQUEST", error.message)
    return ApiError(code_of(error.reason), error.message)
