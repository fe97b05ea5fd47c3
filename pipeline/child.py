"""A call in a process of its own: its memory is free when it ends, and a signal reaches it too."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from typing import Any, TypeVar

from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.signals import Stopped, grace, held_back, keeping, listen, stopping

_LOOK_SECONDS = 0.5  # between two looks at whether a signal has come
_END_SECONDS = 15.0  # that the process has beyond its grace

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class ChildKilledError(ReflogpError):
    """The process ended without an answer, as one does when memory runs out."""


class ChildFailedError(ReflogpError):
    """The call raised what no user should meet; the message is its traceback."""


def call_in_child(
    function: Callable[[Argument], Result], argument: Argument, grace_seconds: float
) -> Result:
    """`function(argument)`, both of which pickle can send.

    Args:
        function: of a module's top level.
        argument: what it is called with.
        grace_seconds: how long `function` may go on after a signal.

    Raises:
        ReflogpError, OSError: what the function raised.
        ChildFailedError: it raised something else.
        ChildKilledError: it did not end.
        Stopped: a signal came, and the process has ended.
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
        send.close()  # the child has it; its end is the end of what can be received
        told = False
        while not receive.poll(_LOOK_SECONDS):
            if stopping() and not told:
                process.terminate()
                told = True
        with suppress(EOFError):  # it was killed
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
    except Exception:  # noqa: BLE001 - it is told of in the parent
        answer = ("failed", ChildFailedError(traceback.format_exc()))
    send.send(answer)
