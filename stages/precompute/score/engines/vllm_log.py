"""What vLLM's processes write -> what says why they ended, in one line.

vLLM raises "See root cause above" in our process, and the cause stands in a traceback that another
process printed. So what those processes print is kept in a file that has no name, from which the
cause is quoted. Who sets VLLM_LOGGING_LEVEL to see more sees all, and nothing is kept.
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
            return _message(error)
        size = os.fstat(self._file.fileno()).st_size
        # Not read and seek: the position in the file is shared with those that write.
        kept = os.pread(self._file.fileno(), _KEPT_BYTES, max(0, size - _KEPT_BYTES))
        return last_cause(kept.decode("utf-8", "replace")) or (
            "its process ended without a word, often for want of memory"
        )


def last_cause(text: str) -> str | None:
    """What a log says of the last exception in it that does not point elsewhere for the cause.

    The lines after its first are part of it as long as they are written in the same way. Where
    there is no exception: the last line that says anything.
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
    """What an exception says; of pydantic's, the message of the first thing that is wrong."""
    problems = error.errors() if hasattr(error, "errors") else None
    return str(problems[0]["msg"]).rstrip(".") if problems else cause(error)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
