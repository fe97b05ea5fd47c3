"""Calls a function in its own process, which frees its memory at the end and receives signals."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from typing import Any, TypeVar

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.signals import Stopped, grace, held_back, keeping, listen, stopping

_LOOK_SECONDS = 0.5  # between two checks for a signal
_END_SECONDS = 15.0  # for the process to end after its grace

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class ChildKilledError(ReflogpError):
    """The process died without an answer, for example because it ran out of memory."""


class ChildFailedError(ReflogpError):
    """The call raised an unexpected error; the message is its traceback."""


def call_in_child(
    function: Callable[[Argument], Result], argument: Argument, grace_seconds: float
) -> Result:
    """Call `function(argument)` in a child process.

    Args:
        function: a top-level function of a module, since it is pickled.
        argument: its argument, which is pickled.
        grace_seconds: how long `function` may continue after a signal.

    Raises:
        ReflogpError, OSError: raised by the function.
        ChildFailedError: the function raised another exception.
        ChildKilledError: the process was killed.
        Stopped: a signal arrived, and the process has ended.
    """
    context = get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(send, function, argument))
    answer: tuple[str, Any] = ("killed", "")
    with (
        keeping(lambda: answer[1] if answer[0] == "stopped" else ""),
        grace(grace_seconds + _END_SECONDS),
    ):
        with held_back():
            process.start()
        send.close()  # so `receive` ends when the child closes its copy
        told = False
        while not receive.poll(_LOOK_SECONDS):
            if stopping() and not told:
                process.terminate()
                told = True
        with suppress(EOFError):  # the child was killed
            answer = receive.recv()
        process.join()
    match answer:
        case ("done", result):
            return result  # type: ignore[no-any-return]
        case ("failed", error):
            raise error
    raise ChildKilledError(f"its process was killed (exit code {process.exitcode})")


def _answer(send: Any, function: Callable[[Argument], Any], argument: Argument) -> None:
    try:
        listen()
        answer = ("done", function(argument))
    except Stopped as stop:
        answer = ("stopped", stop.kept)
    except (ReflogpError, OSError) as error:
        answer = ("failed", error)
    except Exception:  # noqa: BLE001 - the parent reports it
        answer = ("failed", ChildFailedError(traceback.format_exc()))
    send.send(answer)
