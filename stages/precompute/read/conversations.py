"""Conversations -> a prompt, and responses that begin and end with an assistant message.

A response can hold other messages, such as results of tools. Only assistant messages are scored,
and of these not the ones whose `train` is False.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Message, common_turns, same_turns
from reflogp.stages.precompute.read.one_message import TRAIN

_WITHIN_A_TURN = {"assistant", "tool"}


class Divided(NamedTuple):
    """A prompt and its responses. `rejected_prompt` is as in Preference."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    rejected_prompt: list[Message] | None


def divided(chosen: list[Message], rejected: list[Message], *, whole: bool) -> Divided:
    """Divide two conversations: the prompt is their common beginning, the responses the rest.

    The prompt ends before an assistant message. Common messages after its end stand in both
    responses, as context.

    DPO compares two responses to the same prompt, so another question inside a response is a fault
    unless `whole`. TRL takes everything after the common beginning as the response, including later
    questions of the user.

    Raises:
        RowFault: the conversations differ too early, or do not end with an assistant message.
    """
    _require_end("chosen", chosen)
    _require_end("rejected", rejected)
    common = min(common_turns(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    cut = _cut(common, chosen, rejected)
    if cut is None:
        raise _differ("begin with different questions")
    if not whole and any(map(_asks, (chosen[cut:], rejected[cut:]))):
        raise _differ(
            "differ before their last turn; --responses whole takes what follows their common "
            "beginning as the responses"
        )
    other = None if chosen[:cut] == rejected[:cut] else rejected[:cut]
    return Divided(chosen[:cut], _rest(chosen, cut, common), _rest(rejected, cut, common), other)


def last_answer(
    field: str, messages: list[Message], *, whole: bool
) -> tuple[list[Message], list[Message]]:
    """Divide one conversation into a prompt and a response, its last message.

    If `whole`, the response is everything from the first answer to the user.

    Raises:
        RowFault: the conversation does not end with an assistant message.
    """
    _require_end(field, messages)
    last = len(messages) - 1
    answers = (at for at in range(last) if _begins(messages, at) and _asks(messages[:at]))
    common = next(answers, last) if whole else last
    cut = _cut(common, messages) or 0
    return messages[:cut], _rest(messages, cut, common)


def answered(
    prompt: list[Message], sides: Mapping[str, list[Message]], *, whole: bool
) -> tuple[list[Message], list[list[Message]]]:
    """Return the prompt and the responses of a row that has both, in the order of `sides`.

    A response can repeat the prompt; it is cut off. A tool call at the end of the prompt cannot be
    continued, so it becomes context of the responses.

    Raises:
        RowFault: a response does not begin and end with an assistant message, or asks again.
    """
    rests = [_after(prompt, messages) for messages in sides.values()]
    end = len(prompt)
    if prompt and (
        prompt[-1].get("tool_calls") or any(rest and not _begins(rest, 0) for rest in rests)
    ):
        while end and prompt[end - 1]["role"] == "assistant":
            end -= 1
    context = _context(prompt[end:])
    for field, rest in zip(sides, rests, strict=True):
        _require_answer(field, context + rest, whole=whole)
    return prompt[:end], [context + rest for rest in rests]


def beside_prompt(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], *, whole: bool
) -> Divided | None:
    """Divide two conversations of which `prompt` is a part, such as the first question.

    Return None if they are plain responses, or conversations without the prompt.

    Raises:
        RowFault: the conversations differ too early, or do not end with an assistant message.
    """
    talks: list[list[Message]] = []
    for side in (chosen, rejected):
        rest = _after(prompt, side)
        if not _asks(rest):
            return None
        talks.append(side if len(rest) == len(side) else prompt + rest)
    parts = divided(*talks, whole=whole)
    turns = _stripped(parts.prompt)
    is_part = all(any(same_turns([m], [turn]) for turn in turns) for m in _stripped(prompt))
    return parts if is_part else None


def _stripped(messages: Sequence[Message]) -> list[Message]:
    """Return messages without surrounding white space, in which copies of a text often differ."""
    return [{**message, "content": message["content"].strip()} for message in messages]


def _cut(latest: int, *sides: list[Message]) -> int | None:
    """Return the last position up to `latest` where an assistant's turn begins in all sides."""
    return next((at for at in range(latest, -1, -1) if all(_begins(s, at) for s in sides)), None)


def _begins(messages: Sequence[Message], at: int) -> bool:
    """Whether a turn of the assistant begins at a position."""
    after_another = at > 0 and messages[at - 1]["role"] == "assistant"
    return bool(messages[at]["role"] == "assistant") and not after_another


def _asks(messages: Sequence[Message]) -> bool:
    return any(message["role"] not in _WITHIN_A_TURN for message in messages)


def _context(messages: Sequence[Message]) -> list[Message]:
    return [{**message, TRAIN: False} for message in messages]


def _rest(messages: list[Message], cut: int, common: int) -> list[Message]:
    return _context(messages[cut:common]) + messages[common:]


def _after(prompt: list[Message], response: list[Message]) -> list[Message]:
    """Return a response without the prompt, if it repeats the prompt at its beginning."""
    for beginning in (prompt, [m for m in prompt if m["role"] != "system"]):
        if not beginning:
            continue
        *before, last = beginning
        if same_turns(response[: len(beginning)], beginning):
            return response[len(beginning) :]
        if before and len(response) > len(before) and same_turns(response[: len(before)], before):
            first, *others = response[len(before) :]
            if first["role"] == last["role"] == "assistant":
                said, more = last["content"], first["content"]
                if said and more.startswith(said):  # the answer that the prompt begins
                    return [{**first, "content": more.removeprefix(said)}, *others]
    return response


def _require_end(field: str, messages: list[Message]) -> None:
    if not messages:
        raise RowFault(Reason.EMPTY_RESPONSE, field, f"{field!r} has no response")
    if messages[-1]["role"] != "assistant":
        raise RowFault(
            Reason.BAD_MESSAGES,
            field,
            f"{field!r} must end with an assistant message, but its roles are {_roles(messages)}",
        )


def _require_answer(field: str, response: list[Message], *, whole: bool) -> None:
    _require_end(field, response)
    if not _begins(response, 0):
        why = "must begin with an assistant message after the prompt"
    elif not whole and _asks(response):
        why = "must be one turn of the assistant unless --responses whole is set"
    else:
        return
    raise RowFault(
        Reason.BAD_MESSAGES,
        field,
        f"the response in {field!r} {why}, but its roles are {_roles(response)}",
    )


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(message["role"] for message in messages[-5:])


def _differ(why: str) -> RowFault:
    return RowFault(Reason.PROMPTS_DIFFER, "chosen", f"the two conversations {why}")
