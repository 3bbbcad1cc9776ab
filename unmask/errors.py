"""What can go wrong, and the codes that name it everywhere.

    UnmaskError
    ├── UsageError        an option or argument is wrong; the caller corrects it (also a ValueError)
    ├── MediaError        this file, URL or stream gives no score; the others go on
    ├── ModelError        a model cannot be built or a checkpoint cannot be trusted (also a ValueError)
    ├── TrainingError     a run of training that cannot go on: its loss diverged, its memory is used up
    └── StorageError      a place cannot be read or written: full, read-only, unreachable
        └── DamagedError  it can be read, and what lies there is damaged

Every error carries a `Reason` and one sentence: what is wrong, where, what to do. `Reason` is shared by all rooms, so
that a frame dropped in a pipeline, a stream or a file is counted under the same name.
"""

from enum import StrEnum

__all__ = [
    "DamagedError",
    "MediaError",
    "ModelError",
    "Reason",
    "StorageError",
    "TrainingError",
    "UnmaskError",
    "UsageError",
]


class Reason(StrEnum):
    """Why a video or a frame gave no score. Stable: results, metrics and datasets store these strings."""

    # An input that cannot be opened or fetched.
    MISSING_FILE = "missing_file"
    EMPTY_FOLDER = "empty_folder"
    EMPTY_FILE = "empty_file"
    UNREADABLE_FILE = "unreadable_file"
    NOT_A_VIDEO = "not_a_video"
    TRUNCATED_HEADER = "truncated_header"
    NO_VIDEO_STREAM = "no_video_stream"
    UNSUPPORTED_CODEC = "unsupported_codec"
    HTTP_STATUS = "http_status"
    HTTP_TIMEOUT = "http_timeout"
    HTTP_UNREACHABLE = "http_unreachable"
    TOO_LARGE = "too_large"
    # A live source that cannot be opened, or was lost.
    STREAM_AUTH_FAILED = "stream_auth_failed"
    STREAM_TLS_CERTIFICATE = "stream_tls_certificate"
    STREAM_TIMEOUT = "stream_timeout"
    STREAM_NOT_FOUND = "stream_not_found"
    STREAM_UNREACHABLE = "stream_unreachable"
    STREAM_CODEC_UNSUPPORTED = "stream_codec_unsupported"
    STREAM_DISCONNECTED = "stream_disconnected"
    STREAM_STALLED = "stream_stalled"
    MEDIA_UNREADABLE = "media_unreadable"
    ADDRESS_REFUSED = "address_refused"
    # Why a live stream's windows begin anew, where nothing is wrong with its source.
    RESOLUTION_CHANGED = "resolution_changed"
    MODEL_CHANGED = "model_changed"
    SESSION_LOST = "session_lost"
    # A video that killed or blocked the process that decoded it, again and again.
    DECODER_CRASHED = "decoder_crashed"
    DECODER_HUNG = "decoder_hung"
    # A video that opened and gave nothing to score.
    NO_FRAMES = "no_frames"
    NO_FACE = "no_face"
    NO_USABLE_FACE = "no_usable_face"
    # A frame that was asked for and was not scored (NO_FACE is one of these too).
    DECODE_FAILED = "decode_failed"
    CORRUPT_FRAME = "corrupt_frame"
    MISSING_FRAME = "missing_frame"
    FRAME_TOO_SMALL = "frame_too_small"
    FACE_TOO_SMALL = "face_too_small"
    DEPTH_FAILED = "depth_failed"
    # A live frame that came too late, at the wrong time, or to a scorer that failed.
    QUEUE_FULL = "queue_full"
    STALE_FRAME = "stale_frame"
    OUT_OF_ORDER = "out_of_order"
    SCORER_FAILED = "scorer_failed"
    # Options and models.
    BAD_OPTION = "bad_option"
    UNKNOWN_MODEL = "unknown_model"
    PRETRAINED_UNAVAILABLE = "pretrained_unavailable"
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"
    CHECKPOINT_HASH = "checkpoint_hash"
    CHECKPOINT_VERSION = "checkpoint_version"
    DEVICE_UNAVAILABLE = "device_unavailable"
    TRAINING_STOPPED = "training_stopped"
    STORAGE = "storage"
    # A process that worked on a video died of it.
    WORKER_LOST = "worker_lost"
    # Our own fault, or the user's wish to stop.
    INTERNAL = "internal"
    INTERRUPTED = "interrupted"


class UnmaskError(Exception):
    """Base of all errors that Unmask raises on purpose.

    Args:
        reason: The stable code.
        message: One sentence for a person: what is wrong, where, what to do.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        # Sentences end alike, whoever wrote them.
        self.message = message if message.endswith(".") else f"{message}."
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type["UnmaskError"], tuple[Reason, str]]:
        return type(self), (self.reason, self.message)


class UsageError(UnmaskError, ValueError):
    """An option or argument is wrong."""

    def __init__(self, message: str, reason: Reason = Reason.BAD_OPTION) -> None:
        super().__init__(reason, message)

    def __reduce__(self) -> tuple[type["UnmaskError"], tuple[Reason, str]]:
        return type(self), (self.message, self.reason)  # type: ignore[return-value]


class MediaError(UnmaskError):
    """A file, URL or stream from which no score can come."""


class ModelError(UnmaskError, ValueError):
    """A model that cannot be built, or a checkpoint that cannot be trusted."""


class TrainingError(UnmaskError):
    """A run of training that cannot go on."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.TRAINING_STOPPED, message)

    def __reduce__(self) -> tuple[type["TrainingError"], tuple[str]]:  # type: ignore[override]
        return type(self), (self.message,)


class StorageError(UnmaskError):
    """A folder or bucket that cannot be read or written."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.STORAGE, message)

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str]]:  # type: ignore[override]
        return type(self), (self.message,)


class DamagedError(StorageError):
    """What lies at a place can be read and is damaged. To try again will not help, as it may where nothing is read."""
