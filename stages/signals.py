"""Ends a command cleanly on SIGTERM, SIGHUP and Ctrl-C.

No child processes, temporary files or traceback are left. The first signal raises Stopped in the
main thread, which releases resources on its way up. Within `grace` the signal only sets `stopping`,
so a training step can finish and write a checkpoint. A second signal or a timeout ends the process
at once.
"""

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)

# Launchers and schedulers signal a group and each of its processes. A signal that follows this soon
# is the same one.
_SAME_SECONDS = 1.0
_END_SECONDS = 20.0  # from the signal, or from the end of the grace, to the end of the process
_KILL_SECONDS = 3.0  # from a child's SIGTERM to its SIGKILL


class Stopped(BaseException):
    """A signal ends the command. Not an Exception, so no handler mistakes it for a failure.

    Attributes:
        number: of the signal.
        kept: a sentence that says what is kept and how to continue; "" if unknown.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number)
        self.number = number
        self.kept = kept

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process killed by the signal."""
        return 128 + self.number

    def __str__(self) -> str:
        """One line for the user."""
        kept = self.kept or "Finished work is kept, and the same command continues from there."
        name = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return f"stopped by {name}. {kept}"


class _State:
    """The signals so far. It is global because a signal handler gets no arguments of ours."""

    listening = False
    first: int = 0  # number of the first signal; 0: none
    at: float = 0.0
    grace: float | None = None  # seconds; None: the first signal raises Stopped
    raised = False
    children: tuple[Any, ...] = ()


def listen() -> None:
    """Handle the signals from now on.

    Signals that are ignored stay ignored: nohup ignores SIGHUP, and a shell ignores Ctrl-C for
    background jobs.
    """
    _State.listening = True
    atexit.unregister(_end_children)
    atexit.register(_end_children)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _received)
    signal.signal(signal.SIGALRM, _too_late)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)


def listen_again() -> None:
    """Restore the command's handlers after a library has installed its own."""
    if _State.listening:
        listen()


@contextmanager
def ending(say: Callable[[str], None]) -> Iterator[None]:
    """Run a command so that a signal ends it with one line and the exit code that shells expect.

    Args:
        say: prints the line.
    """
    before = [(number, signal.getsignal(number)) for number in (*SIGNALS, signal.SIGALRM)]
    try:
        listen()  # also delivers signals that `held_back` has blocked
        yield
    except (Stopped, Exception) as error:
        if not _State.first:
            raise
        # an error after a signal is a consequence of it: the signal ended other processes too
        stop = error if isinstance(error, Stopped) else _stopped()
        say(str(stop))
        sys.exit(stop.exit_code)
    finally:
        if not _State.first:
            _State.listening = False
            for number, handler in before:
                signal.signal(number, handler)


@contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """Add `kept()` to the line of a signal in the block, unless an inner block added its own."""
    try:
        yield
    except Stopped as stop:
        stop.kept = stop.kept or kept()
        raise


@contextmanager
def grace(seconds: float) -> Iterator[None]:
    """In the block, the first signal only sets `stopping`.

    Stopped is raised after `seconds`, or at the end of the block if that is sooner.
    """
    _State.grace = seconds
    try:
        yield
    finally:
        _State.grace = None
    if _State.first and not _State.raised:
        raise _stopped()


def stopping() -> int:
    """The number of the signal that has arrived; 0 if none has."""
    return _State.first


@contextmanager
def held_back() -> Iterator[None]:
    """Start a child process in the block. Its terminal signals wait until it calls `listen`.

    Before that, SIGTERM ends it silently.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)


def _received(number: int, _: FrameType | None) -> None:
    if _State.first:
        if time.monotonic() - _State.at > _SAME_SECONDS:
            _end_at_once()
        return
    _State.first, _State.at = number, time.monotonic()
    _State.children = _children()  # orphans cannot be found later
    if _State.grace is None:
        raise _stopped()
    signal.setitimer(signal.ITIMER_REAL, max(_State.grace, 0.001))


def _too_late(_: int, __: FrameType | None) -> None:
    if _State.raised:
        _end_at_once()
    raise _stopped()


def _stopped() -> Stopped:
    _State.raised = True
    signal.setitimer(signal.ITIMER_REAL, _END_SECONDS)
    return Stopped(_State.first)


def _end_at_once() -> None:
    for child in {*_State.children, *_children()}:
        with suppress(Exception):
            child.kill()
    os._exit(128 + _State.first)


def _end_children() -> None:
    """After a signal, end the remaining processes that this one and its children started."""
    if not _State.first:
        return
    import psutil

    left = [child for child in {*_State.children, *_children()} if child.is_running()]
    for end in ("terminate", "kill"):
        for child in left:
            with suppress(psutil.Error):
                getattr(child, end)()
        _, left = psutil.wait_procs(left, timeout=_KILL_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 0)  # finished in time


def _children() -> tuple[Any, ...]:
    """Descendants of this process, except Python's resource tracker, which cleans up by itself."""
    import psutil

    found = []
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "multiprocessing.resource_tracker" not in " ".join(child.cmdline()):
                    found.append(child)
    return tuple(found)
