"""The output of vLLM's processes -> the reason why they died, in one line.

In our process vLLM only raises "See root cause above", and the traceback is printed by another
process. The output of those processes is therefore captured in an anonymous file, from which the
cause is quoted. If the user sets VLLM_LOGGING_LEVEL, nothing is captured.
"""

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from reflogp.stages.model.loading import cause

QUIET = "ERROR"
_KEPT_BYTES = 1 << 16
_LONGEST, _MOST_LINES = 400, 4
# the start of a line: "(EngineCore pid=7) (Worker pid=8) ERROR 11-21 16:04:12 [core.py:1234] "
_PREFIX = re.compile(r"^(\(\S+ pid=\d+\)\s*)*([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[\S+\] ?)?")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b: *\S")
_POINTS_ELSEWHERE = re.compile(r"root cause|stack trace", re.IGNORECASE)


class EngineLog:
    """Captures the output of processes that are started in a `receiving` block."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the engine

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Capture this process's output in the block, and that of processes started in it."""
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
        """The reason for `error`: its message, or the captured output that it refers to."""
        if not _POINTS_ELSEWHERE.search(str(error)):
            return _message(error)
        size = os.fstat(self._file.fileno()).st_size
        # pread, because the file position is shared with the writing processes
        kept = os.pread(self._file.fileno(), _KEPT_BYTES, max(0, size - _KEPT_BYTES))
        return last_cause(kept.decode("utf-8", "replace")) or (
            "its process died without a message, often because it ran out of memory"
        )


def last_cause(text: str) -> str | None:
    """The message of the last exception in a log that does not refer to another one.

    Following lines with the same prefix belong to it. Without an exception, the last line that is
    not empty is returned.
    """
    plain = (_COLOUR.sub("", line) for line in text.splitlines())
    lines = [
        (match.group(), line[match.end() :]) for line in plain if (match := _PREFIX.match(line))
    ]
    telling = [
        number
        for number, (_, line) in enumerate(lines)
        if line.strip() and not _POINTS_ELSEWHERE.search(line)
    ]
    raised = [number for number in telling if _RAISED.match(lines[number][1].strip())]
    if not raised:
        return lines[telling[-1]][1].strip()[:_LONGEST].rstrip(".") if telling else None
    way = lines[raised[-1]][0]
    rest = itertools.takewhile(lambda line: line[0] == way and line[1].strip(), lines[raised[-1] :])
    said = " ".join(line.strip() for _, line in itertools.islice(rest, _MOST_LINES))
    return said[:_LONGEST].rstrip(".")


def _message(error: Exception) -> str:
    """The message of an exception; for a pydantic error, that of its first problem."""
    problems = error.errors() if hasattr(error, "errors") else None
    return str(problems[0]["msg"]).rstrip(".") if problems else cause(error)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
