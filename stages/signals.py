"""SIGTERM, SIGHUP and Ctrl-C end a command in order: no children, no temporary files, no traceback.

The first signal raises Stopped in the main thread, and on its way up everything that is held is
given back. Within `grace` it only sets `stopping`, so that a training step can end and a checkpoint
be written. A second signal, or too much time, ends the process at once.
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

# A launcher or a scheduler sends a signal to a group and each process of it once more: what follows
# so soon is the same signal.
_SAME_SECONDS = 1.0
_END_SECONDS = 20.0  # from the signal, or from the end of the grace, until the process has ended
_KILL_SECONDS = 3.0  # from a child's SIGTERM to its SIGKILL


class Stopped(BaseException):
    """A signal ends the command. No Exception, so that nothing on the way takes it for a failure.

    Attributes:
        number: of the signal.
        kept: a sentence on what is kept and how to go on; "" where nobody has said it.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number)
        self.number = number
        self.kept = kept

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended."""
        return 128 + self.number

    def __str__(self) -> str:
        """One line for people."""
        kept = self.kept or "What was finished is kept, and the same command goes on from there."
        name = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return f"stopped by {name}. {kept}"


class _State:
    """What has come so far. A handler can be told nothing else."""

    listening = False
    first: int = 0  # number of the signal that came first; 0: none
    at: float = 0.0
    grace: float | None = None  # seconds; None: the first signal raises Stopped
    raised = False
    children: tuple[Any, ...] = ()


def listen() -> None:
    """Handle the signals from now on.

    What is ignored stays so: nohup ignores SIGHUP, and a shell Ctrl-C of what it runs in the
    background.
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
    """After a library has put its own handlers in place, bring back those of the command."""
    if _State.listening:
        listen()


@contextmanager
def ending(say: Callable[[str], None]) -> Iterator[None]:
    """Around a command: a signal ends it with one line, and with the exit code that shells expect.

    Args:
        say: shows the line.
    """
    before = [(number, signal.getsignal(number)) for number in (*SIGNALS, signal.SIGALRM)]
    try:
        listen()  # which lets in what `held_back` has kept waiting
        yield
    except (Stopped, Exception) as error:
        if not _State.first:
            raise
        # what fails after a signal fails because of it: another process was ended, too
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
    """Within, a signal's line says what `kept` gives, unless something within says more."""
    try:
        yield
    except Stopped as stop:
        stop.kept = stop.kept or kept()
        raise


@contextmanager
def grace(seconds: float) -> Iterator[None]:
    """Within, the first signal only makes `stopping` true; Stopped comes after `seconds`.

    It comes at the end of the block if that is sooner.
    """
    _State.grace = seconds
    try:
        yield
    finally:
        _State.grace = None
    if _State.first and not _State.raised:
        raise _stopped()


def stopping() -> int:
    """The number of the signal that has come; 0 if none has."""
    return _State.first


@contextmanager
def held_back() -> Iterator[None]:
    """Start a child within: what a terminal sends to all waits until the child calls `listen`.

    SIGTERM ends it before that, without a word.
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
    _State.children = _children()  # those that lose their parent are not to be found later
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
    """After a signal, end what is left of the processes that this one and its children started."""
    if not _State.first:
        return
    import psutil

    left = [child for child in {*_State.children, *_children()} if child.is_running()]
    for end in ("terminate", "kill"):
        for child in left:
            with suppress(psutil.Error):
                getattr(child, end)()
        _, left = psutil.wait_procs(left, timeout=_KILL_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 0)  # all is done in time


def _children() -> tuple[Any, ...]:
    """Processes below this one, but for Python's own, which clears up when this one has ended."""
    import psutil

    found = []
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "multiprocessing.resource_tracker" not in " ".join(child.cmdline()):
                    found.append(child)
    return tuple(found)
