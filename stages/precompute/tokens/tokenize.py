"""Preferences -> token ids. Stage two uses these ids unchanged.

Any change here that can give different ids for the same input must raise RULES_VERSION in
config.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple, TypeVar

from rapidfuzz.distance import Prefix
from transformers import PreTrainedTokenizerBase

from reflogp.data_schemas.quarantine import Reason
from reflogp.data_schemas.reading import Remark
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.cache.row_ids import RowIds, TokenIds, TokenMask, cut_mask, packed
from reflogp.stages.precompute.read.messages import Content
from reflogp.stages.precompute.read.preferences import Preference
from reflogp.stages.precompute.tokens.chat_template import Span
from reflogp.stages.precompute.tokens.encode import (
    Encode,
    Encoded,
    Encoder,
    NotLiteralError,
    inner,
    mask_of,
)
from reflogp.stages.precompute.tokens.ends import Ends, TokenRules
from reflogp.stages.precompute.tokens.remarks import Notices
from reflogp.stages.precompute.tokens.spans import is_written
from reflogp.stages.precompute.tokens.templates import Templates
from reflogp.stages.precompute.tokens.texts import Texts, texts_of

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One preference as token ids, with the fields of a planned shard."""

    row_id: str
    source_row: int
    prompt_ids: TokenIds
    chosen_ids: TokenIds | None
    rejected_ids: TokenIds | None
    prompt_truncated: bool
    chosen_truncated: bool
    rejected_truncated: bool
    confidence: float | None
    kl_ids: TokenIds | None = None
    chosen_mask: TokenMask | None = None
    rejected_mask: TokenMask | None = None
    kl_mask: TokenMask | None = None
    kept: list[dict[str, str | None]] | None = None


class _Kept(NamedTuple):
    """What a row has of a response; nothing if the row lacks it."""

    ids: TokenIds | None = None
    mask: TokenMask | None = None
    truncated: bool = False


_ABSENT = _Kept()


class Tokenizer:
    """A tokenizer with its rules. It also counts the rows whose template diverged.

    The rules, compared with TRL 1.16:

    - Messages are rendered by the chat template, the prompt with its generation prompt. Plain text
      gets the tokenizer's BOS, but never twice. Both are as in TRL.
    - The prompt's ids are a prefix of the whole sequence. If tokens would merge across the boundary
      of prompt and response, the response is tokenized separately, so the policy trains on the
      prompt ids that it sees at inference; TRL starts the response where the ids diverge. If the
      template renders a prompt differently when a response follows, no such prefix exists. TRL's
      rule then applies, and the row counts as `template_diverged`.
    - What the assistant writes in a response of several messages is marked by a mask, from the
      template's own marks or message by message (spans.py). TRL trains on all of the response.
    - A response ends with one stop token. Plain text gets EOS, as in TRL, or keeps another stop
      token of the model. A rendered message keeps the template's end of turn (such as `<|im_end|>`
      and a newline). EOS is added only if the message has none of the model's stop tokens; TRL does
      not add it, and a policy trained that way never learns to stop.
    - Beyond `max_length`, either the responses lose their end (TRL's keep_start), or the prompt
      loses its beginning, the same for both responses. A BOS stays.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rules: TokenRules,
        templates: Templates | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        self._templates = templates or Templates(tokenizer)
        self._encoder = Encoder(tokenizer, self._templates.special)
        self._ends = Ends(tokenizer, rules)
        self._row_ids = RowIds()
        self.template_diverged = 0

    def __call__(self, preference: Preference) -> TokenizedRow:
        """Tokenize one preference.

        Raises:
            RowFault: the row does not fit `max_length`, the template cannot render it, or it is
                left without usable tokens.
        """
        (found,) = self.many([preference])
        if isinstance(found, RowFault):
            raise found
        return found

    def many(
        self, preferences: Sequence[Preference], notices: Notices | None = None
    ) -> list[TokenizedRow | RowFault]:
        """Tokenize many preferences at once; fast tokenizers use all cores for a batch.

        Args:
            preferences: the rows.
            notices: collects remarks on the usable rows.

        Returns:
            For each preference, its tokenized row or its fault.
        """
        made = [_or_fault(texts_of, preference, self._templates) for preference in preferences]
        joined = [text for found in made if not isinstance(found, RowFault) for text in found.texts]
        encoded = iter(self._encoder.many(joined))
        rows: list[TokenizedRow | RowFault] = []
        for preference, found in zip(preferences, made, strict=True):
            row: TokenizedRow | RowFault
            if isinstance(found, RowFault):
                row = found
            else:
                usual = list(islice(encoded, len(found.texts)))
                row = _or_fault(self._tokenized, preference, found, usual)
                if notices is not None and not isinstance(row, RowFault):
                    for remark, detail in found.remarks.items():
                        notices.add(remark, preference.source_row, detail)
            rows.append(row)
        return rows

    def _tokenized(self, preference: Preference, made: Texts, usual: list[Encoded]) -> TokenizedRow:
        if made.literal is not None:
            encode = self._encoder.literal
            try:
                return self._row(
                    preference, made.literal, [*map(encode, made.literal.texts)], encode
                )
            except NotLiteralError:
                made.remarks.setdefault(Remark.CONTROL_TOKENS, made.typed)
        return self._row(preference, made, usual, self._encoder.one)

    def _require_embeddings(self, ids: list[int]) -> None:
        """Refuse a row with a token that the tokenizer has and the model has not."""
        rows, last = self._rules.vocabulary, max(ids)
        if rows is not None and last >= rows:
            token = self._tokenizer.convert_ids_to_tokens(last)
            raise RowFault(
                Reason.UNSUPPORTED,
                None,
                f"the token {token} has the id {last}, and the model has embeddings for {rows} ids",
            )

    def _row(
        self, preference: Preference, made: Texts, encoded: list[Encoded], encode: Encode
    ) -> TokenizedRow:
        raw = isinstance(preference.prompt, str)
        prompt, tails = self._parted(made.texts, encoded, encode, raw=raw)
        closed = [self._ends.close(tail.ids, raw=raw) for tail in tails]
        if not all(closed):
            raise RowFault(Reason.EMPTY_RESPONSE, None, "a response has no tokens")
        eos = self._tokenizer.eos_token_id
        if eos is None and not all(map(self._ends.ends_in_stop, closed)):
            made.remarks.setdefault(Remark.NO_END, "")
        kept_prompt, kept = self._ends.truncate(prompt, closed)
        self._require_embeddings([*kept_prompt, *chain(*kept)])
        if len(kept) == 2 and kept[0] == kept[1]:
            raise self._identical(closed, raw=raw)
        given = {"chosen": preference.chosen, "rejected": preference.rejected}
        sides = {name: response for name, response in given.items() if response is not None}
        found = {
            name: _Kept(
                packed(short),
                self._mask(name, response, tail, spans, len(short)),
                len(short) < len(long),
            )
            for (name, response), tail, spans, long, short in zip(
                sides.items(), tails, made.spans, closed, kept, strict=True
            )
        }
        chosen, rejected = (found.get(name, _ABSENT) for name in given)
        if not all(whole.startswith(made.texts[0]) for whole in made.texts):
            self.template_diverged += 1
            made.remarks.setdefault(Remark.TEMPLATE_DIVERGED, "")
        prompt_ids = packed(kept_prompt)
        return TokenizedRow(
            row_id=self._row_ids.assign(
                prompt_ids, chosen.ids, rejected.ids, masks=(chosen.mask, rejected.mask)
            ),
            source_row=preference.source_row,
            prompt_ids=prompt_ids,
            chosen_ids=chosen.ids,
            rejected_ids=rejected.ids,
            prompt_truncated=len(kept_prompt) < len(prompt),
            chosen_truncated=chosen.truncated,
            rejected_truncated=rejected.truncated,
            confidence=preference.confidence,
            chosen_mask=chosen.mask,
            rejected_mask=rejected.mask,
        )

    def _mask(
        self, field: str, response: Content, tail: Encoded, spans: list[Span] | None, length: int
    ) -> TokenMask | None:
        """Return the mask of the first `length` tokens of a response.

        Raises:
            RowFault: the policy writes none of them.
        """
        if spans is None:
            return None
        marks = bytearray(mask_of(tail.starts(), spans))
        stops = self._rules.stop_ids
        for place, (before, token) in enumerate(pairwise(tail.ids), start=1):
            # some templates end what they mark before the stop token, which the policy writes too
            if token in stops and before not in stops and marks[place - 1]:
                marks[place] = True
        marks.append(not isinstance(response, str) and is_written(response[-1]))  # of an added EOS
        if 1 not in marks[:length]:
            within = f" within max_length {self._rules.max_length}" * (1 in marks)
            raise RowFault(
                Reason.EMPTY_RESPONSE, field, f"the assistant writes no token of {field!r}{within}"
            )
        return cut_mask(bytes(marks), length)

    def _identical(self, tails: list[list[int]], *, raw: bool) -> RowFault:
        if tails[0] != tails[1]:
            why = f" within max_length {self._rules.max_length}"
        else:
            why = "" if raw else ": the chat template drops the difference between them"
        return RowFault(
            Reason.IDENTICAL_RESPONSES, "chosen", f"chosen and rejected have the same tokens{why}"
        )

    def _parted(
        self, texts: list[str], encoded: list[Encoded], encode: Encode, *, raw: bool
    ) -> tuple[list[int], list[Encoded]]:
        """Split the tokens of the texts into those of the prompt and of each response."""
        (text, *wholes), (before, *all_tokens) = texts, encoded
        ids = before.ids
        if not all(whole.startswith(text) for whole in wholes):
            ids = ids[: min(Prefix.similarity(ids, tokens.ids) for tokens in all_tokens)]
        tails = [
            tokens.after(len(ids))
            if tokens.ids[: len(ids)] == ids
            else inner(whole[len(text) :], encode).moved(len(text))
            for whole, tokens in zip(wholes, all_tokens, strict=True)
        ]
        if raw and ids[: len(self._ends.bos)] != self._ends.bos:
            ids = self._ends.bos + ids
        if not ids:
            raise RowFault(Reason.EMPTY_PROMPT, "prompt", "the prompt has no tokens")
        return ids, tails


def _or_fault(work: Callable[..., Result], *arguments: Any) -> Result | RowFault:
    try:
        return work(*arguments)
    except RowFault as fault:
        return fault
