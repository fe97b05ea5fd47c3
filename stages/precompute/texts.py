"""A preference -> the texts whose tokens are taken, and what is worth knowing of them."""

from typing import NamedTuple

from data_schemas.quarantine import Reason
from data_schemas.reading import Remark
from stages.precompute.chat_template import ChatTemplate, Remarks
from stages.precompute.faults import RowFault
from stages.precompute.messages import Message, text
from stages.precompute.preferences import Preference


class Texts(NamedTuple):
    """The text of the prompt, those of the prompt with each response, and remarks on them."""

    texts: list[str]
    remarks: Remarks


def texts_of(preference: Preference, template: ChatTemplate) -> Texts:
    """The texts of a preference: raw ones as they stand, messages through the template.

    Raises:
        RowFault: the template cannot render the messages, or drops all that a response says.
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
                f"the chat template leaves out {lost}, and nothing of the response is left",
            )
        remarks = found | remarks
    return Texts(texts, remarks | template.unused_fields(said))
