"""Logs that machines read: a JSON object a line on standard error, without credentials."""

import json
import logging
import re
import sys
import time
from typing import Any

from unmask.addresses import without_password

__all__ = ["JsonLines", "redacted", "set_up"]

_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)
_BEARER = re.compile(r"(bearer[\s.]+)[a-z0-9._~+/=-]+", re.IGNORECASE)
_NAMED = re.compile(
    r"((?:api[-_]?key|token|password|passwd|secret|signature|authorization)[\"']?\s*[=:]\s*[\"']?)"
    r"(?!bearer\b)[^\s\"'&,;}]+",
    re.IGNORECASE,
)
_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redacted(text: str) -> str:
    """A text without the users and passwords of URLs, keys, tokens and secrets that stand in it by name."""
    text = _URL.sub(lambda match: without_password(match[0]), text)
    text = _BEARER.sub(r"\1***", text)
    return _NAMED.sub(r"\1***", text)


class JsonLines(logging.Formatter):
    """A record as one line: time, level, logger, message, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "at": round(record.created, 3),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        extra = {k: v for k, v in vars(record).items() if k not in _OWN and not k.startswith("_") and k not in line}
        line |= {k: redacted(v) if isinstance(v, str) else v for k, v in extra.items()}
        if record.exc_info:
            line["error"] = redacted(self.formatException(record.exc_info))
        return json.dumps(line, default=lambda value: redacted(str(value)))


def set_up(level: int = logging.INFO) -> logging.Logger:
    """The service's logger. It and all others of Unmask write such lines. Called in every process; once is enough."""
    logger = logging.getLogger("unmask")
    if not any(isinstance(h.formatter, JsonLines) for h in logger.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level)
    return logger.getChild("serve")
