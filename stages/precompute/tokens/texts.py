"""A preference -> the texts to tokenize, and remarks on them."""

from collections.abc import Sequence
from typing import NamedTuple

from reflogp.data_schemas.quarantine import Reason
from reflogp.data_schemas.reading import Notice, Part, Remark, locate
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Message, text
from reflogp.stages.precompute.read.preferences import Preference
from reflogp.stages.precompute.tokens.chat_template import ChatTemplate, Remarks


class Texts(NamedTuple):
    """The text of the prompt, the texts of the prompt with each response, and remarks on them."""

    texts: list[str]
    remarks: Remarks


def texts_of(preference: Preference, template: ChatTemplate) -> Texts:
    """Return the texts of a preference: plain text unchanged, messages rendered by the template.

    Raises:
        RowFault: the template cannot render the messages, or drops everything in a response.
    """
    if isinstance(preference.prompt, str):
        return _raw(preference.prompt, preference, template)
    return _rendered(preference.prompt, preference, template)


def _raw(prompt: str, preference: Preference, template: ChatTemplate) -> Texts:
    responses = [r for r in (preference.chosen, preference.rejected) if isinstance(r, str)]
    remarks = template.control_tokens(prompt, *responses)
    if template.is_there:
        remarks[Remark.TEXT_FOR_CHAT_MODEL] = ""
    return Texts([prompt, *(prompt + response for response in responses)], remarks)


def _rendered(prompt: list[Message], preference: Preference, template: ChatTemplate) -> Texts:
    before = template.render(prompt, add_generation_prompt=True)
    other = preference.rejected_prompt
    if isinstance(other, list) and template.render(other, add_generation_prompt=True) != before:
        raise RowFault(
            Reason.PROMPTS_DIFFER,
            "chosen",
            "the two conversations differ before their last turn, as the template renders them",
        )
    texts, remarks = [before], template.remarks(prompt, before)
    said = list(prompt)
    for field, response in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        if not isinstance(response, list):
            continue
        said += response
        texts.append(template.render(prompt + response))
        found = template.remarks(response, texts[-1])
        lost = found.get(Remark.TEMPLATE_DROPS)
        if lost is not None and not text(response).strip():
            raise RowFault(
                Reason.EMPTY_RESPONSE,
                field,
                f"the chat template leaves out {lost}, so the response is empty",
            )
        remarks = found | remarks
    return Texts(texts, remarks | template.unused_fields(said))


class Notices:
    """Count the rows of each remark, and remember the first."""

    def __init__(self) -> None:
        self._counts: dict[Remark, int] = {}
        self._first: dict[Remark, tuple[int, str]] = {}

    def add(self, remark: Remark, source_row: int, detail: str = "") -> None:
        """Count one row."""
        self._counts[remark] = self._counts.get(remark, 0) + 1
        self._first.setdefault(remark, (source_row, detail))

    def records(self, parts: Sequence[Part]) -> list[Notice]:
        """Return the notices, with the file and line of each first row."""
        found = []
        for remark, count in self._counts.items():
            row, detail = self._first[remark]
            file, line = locate(parts, row)
            detail = detail.encode("utf-8", "backslashreplace").decode("utf-8")
            found.append(Notice(remark=remark, noticed=count, file=file, line=line, detail=detail))
        return found
