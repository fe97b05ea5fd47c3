"""What vLLM's processes write -> the one line that says why they ended.

vLLM raises "See root cause above" in our process, and the cause stands in a traceback that another
process printed. So what those processes print is kept in a file that has no name, from which the
cause is quoted. Who sets VLLM_LOGGING_LEVEL to see more sees all, and nothing is kept.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = "ERROR"
_KEPT_BYTES = 1 << 16
_LONGEST = 400
# "(EngineCore pid=7) (Worker pid=8) ERROR 11-21 16:04:12 [core.py:1234] " before a line
_PREFIX = re.compile(r"^(\(\S+ pid=\d+\)\s*)*([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[\S+\] ?)?")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b: *\S")
_POINTS_ELSEWHERE = re.compile(r"root cause|stack trace", re.IGNORECASE)


class EngineLog:
    """Takes what processes write that are started while it is `receiving`."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the engine

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Within, this process writes here; one that is started writes here to its end."""
        if os.environ.get("VLLM_LOGGING_LEVEL") != QUIET:
            yield
            return
        streams = (1, 2)
        _flush()
        before = [os.dup(stream) for stream in streams]
        try:
            for stream in streams:
                os.dup2(self._file.fileno(), stream)
            yield
        finally:
            _flush()
            for stream, copy in zip(streams, before, strict=True):
                os.dup2(copy, stream)
                os.close(copy)

    def root_cause(self, error: Exception) -> str:
        """Why `error` was raised here: what it says, unless it points to what was written."""
        if not _POINTS_ELSEWHERE.search(str(error)):
            return _first_message(error)
        size = os.fstat(self._file.fileno()).st_size
        # Not read and seek: the position in the file is shared with those that write.
        kept = os.pread(self._file.fileno(), _KEPT_BYTES, max(0, size - _KEPT_BYTES))
        return last_cause(kept.decode("utf-8", "replace")) or (
            "its process ended without a word, often for want of memory"
        )


def last_cause(text: str) -> str | None:
    """The last line of a log that names an exception and does not point elsewhere for the cause.

    Where there is none: the last line that says anything.
    """
    lines = [_PREFIX.sub("", _COLOUR.sub("", line)).strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not _POINTS_ELSEWHERE.search(line)]
    raised = [line for line in telling if _RAISED.match(line)]
    return next((found[-1][:_LONGEST].rstrip(".") for found in (raised, telling) if found), None)


def _first_message(error: Exception) -> str:
    """One line of an exception; of pydantic's, the message of the first thing that is wrong."""
    problems = error.errors() if hasattr(error, "errors") else None
    text = problems[0]["msg"] if problems else str(error).strip() or type(error).__name__
    return str(text).splitlines()[0][:_LONGEST].rstrip(".")


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
