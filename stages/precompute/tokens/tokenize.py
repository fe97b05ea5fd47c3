"""Preferences -> token ids. Stage two uses these ids unchanged.

Any change here that can give different ids for the same input must raise RULES_VERSION in
config.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rapidfuzz.distance import Prefix
from transformers import PreTrainedTokenizerBase

from reflogp.data_schemas.quarantine import Reason
from reflogp.data_schemas.reading import Remark
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.cache.row_ids import Mask, RowIds, TokenIds, packed
from reflogp.stages.model.loading import loading
from reflogp.stages.precompute.config import Truncate
from reflogp.stages.precompute.read.preferences import Preference
from reflogp.stages.precompute.tokens.chat_template import ChatTemplate
from reflogp.stages.precompute.tokens.texts import Notices, Texts, texts_of

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
    chosen_mask: Mask | None = None
    rejected_mask: Mask | None = None
    kl_mask: Mask | None = None
    kept: list[dict[str, str | None]] | None = None


@dataclass(frozen=True)
class TokenRules:
    """The rules that, with the tokenizer, decide the ids of a row.

    Attributes:
        max_length: largest number of tokens of prompt and response together.
        truncate: which of the two loses tokens; `never` quarantines the row instead.
        stop_ids: ids that end a response.
    """

    max_length: int
    truncate: Truncate
    stop_ids: frozenset[int]


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
    - A response ends with one stop token. Plain text gets EOS, as in TRL, or keeps another stop
      token of the model. A rendered message keeps the template's end of turn (such as `<|im_end|>`
      and a newline). EOS is added only if the message has none of the model's stop tokens; TRL does
      not add it, and a policy trained that way never learns to stop.
    - Beyond `max_length`, either the responses lose their end (TRL's keep_start), or the prompt
      loses its beginning, the same for both responses. A BOS stays.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rules: TokenRules) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        self._template = ChatTemplate(tokenizer)
        self._bos = _special_prefix(tokenizer)
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
        made = [_or_fault(texts_of, preference, self._template) for preference in preferences]
        joined = [text for found in made if not isinstance(found, RowFault) for text in found.texts]
        ids = iter(self._all_ids(joined))
        rows: list[TokenizedRow | RowFault] = []
        for preference, found in zip(preferences, made, strict=True):
            row: TokenizedRow | RowFault
            if isinstance(found, RowFault):
                row = found
            else:
                row = _or_fault(self._row, preference, found, list(islice(ids, len(found.texts))))
                if notices is not None and not isinstance(row, RowFault):
                    for remark, detail in found.remarks.items():
                        notices.add(remark, preference.source_row, detail)
            rows.append(row)
        return rows

    def _row(self, preference: Preference, made: Texts, ids: list[list[int]]) -> TokenizedRow:
        responses = [preference.chosen, preference.rejected]
        raw = isinstance(preference.prompt, str)
        prompt, tails = self._parted(made.texts, ids, raw=raw)
        tails = [self._close(tail, raw=raw) for tail in tails]
        if not all(tails):
            raise RowFault(Reason.EMPTY_RESPONSE, None, "a response has no tokens")
        eos = self._tokenizer.eos_token_id
        if eos is None and not all(map(self._ends_in_stop, tails)):
            made.remarks.setdefault(Remark.NO_END, "")
        kept_prompt, kept = self._truncate(prompt, tails)
        if len(kept) == 2 and kept[0] == kept[1]:
            raise self._identical(tails, raw=raw)
        cut = iter([len(short) < len(long) for short, long in zip(kept, tails, strict=True)])
        left = map(packed, kept)
        prompt_ids = packed(kept_prompt)
        chosen, rejected = (None if r is None else next(left) for r in responses)
        return TokenizedRow(
            row_id=self._row_ids.assign(prompt_ids, chosen, rejected),
            source_row=preference.source_row,
            prompt_ids=prompt_ids,
            chosen_ids=chosen,
            rejected_ids=rejected,
            prompt_truncated=len(kept_prompt) < len(prompt),
            chosen_truncated=chosen is not None and next(cut),
            rejected_truncated=rejected is not None and next(cut),
            confidence=preference.confidence,
        )

    def _identical(self, tails: list[list[int]], *, raw: bool) -> RowFault:
        if tails[0] != tails[1]:
            why = f" within max_length {self._rules.max_length}"
        else:
            why = "" if raw else ": the chat template drops the difference between them"
        return RowFault(
            Reason.IDENTICAL_RESPONSES, "chosen", f"chosen and rejected have the same tokens{why}"
        )

    def _parted(
        self, texts: list[str], all_ids: list[list[int]], *, raw: bool
    ) -> tuple[list[int], list[list[int]]]:
        """Split the ids of the texts into those of the prompt and of each response."""
        (text, *wholes), (ids, *whole_ids) = texts, all_ids
        if not all(whole.startswith(text) for whole in wholes):
            shared = min(Prefix.similarity(ids, whole) for whole in whole_ids)
            self.template_diverged += 1
            ids = ids[:shared]
        tails = [
            found[len(ids) :] if found[: len(ids)] == ids else self._inner_ids(whole[len(text) :])
            for whole, found in zip(wholes, whole_ids, strict=True)
        ]
        if raw and ids[: len(self._bos)] != self._bos:
            ids = self._bos + ids
        if not ids:
            raise RowFault(Reason.EMPTY_PROMPT, "prompt", "the prompt has no tokens")
        return ids, tails

    def _all_ids(self, texts: list[str]) -> list[list[int]]:
        # templates write their own special tokens, and _parted adds BOS to plain text
        if not texts:
            return []
        return list(self._tokenizer(texts, add_special_tokens=False)["input_ids"])

    def _ids(self, text: str) -> list[int]:
        return self._all_ids([text])[0]

    def _inner_ids(self, text: str) -> list[int]:
        """Return the ids of `text` without the space that SentencePiece adds in front."""
        line, found = self._ids("\n"), self._ids("\n" + text)
        return found[len(line) :] if found[: len(line)] == line else self._ids(text)

    def _close(self, response: list[int], *, raw: bool) -> list[int]:
        eos = self._tokenizer.eos_token_id
        if eos is None or (response and response[-1] in self._rules.stop_ids):
            return response
        if not raw and self._ends_in_stop(response):
            return response
        return [*response, eos]

    def _ends_in_stop(self, response: list[int]) -> bool:
        """Whether only white space follows the last stop token, as in `<|im_end|>` + newline."""
        for position in range(len(response) - 1, -1, -1):
            if response[position] in self._rules.stop_ids:
                return True
            if str(self._tokenizer.decode(response[position])).strip():
                return False
        return False

    def _beginning(self, prompt: list[int]) -> list[int]:
        """Return the tokenizer's prefix of plain text, or the single BOS that a template writes.

        A BOS that occurs more than once is ChatML's `<|im_start|>`, which starts a turn and not the
        text.
        """
        if self._bos and prompt[: len(self._bos)] == self._bos:
            return self._bos
        bos = self._tokenizer.bos_token_id
        return prompt[:1] if prompt[:1] == [bos] and bos not in prompt[1:] else []

    def _truncate(
        self, prompt: list[int], responses: list[list[int]]
    ) -> tuple[list[int], list[list[int]]]:
        limit, longest = self._rules.max_length, max(map(len, responses))
        over = len(prompt) + longest - limit
        if over <= 0:
            return prompt, responses
        if self._rules.truncate == "never":
            raise RowFault(
                Reason.TOO_LONG, None, f"{len(prompt) + longest} tokens, over max_length {limit}"
            )
        if self._rules.truncate == "prompt":
            bos = self._beginning(prompt)
            # one token must stay, from which the first response token is predicted
            keep = max(len(prompt) - over - len(bos), 0 if bos else 1)
            prompt = bos + prompt[len(prompt) - keep :]
        room = limit - len(prompt)
        if room <= 0:
            raise RowFault(
                Reason.PROMPT_TOO_LONG,
                "prompt",
                f"the prompt has {len(prompt)} tokens, so max_length {limit} leaves none for a "
                "response; raise --max-length, or give --truncate prompt",
            )
        return prompt, [response[:room] for response in responses]


def stop_ids(tokenizer: PreTrainedTokenizerBase, checkpoint: Path) -> list[int]:
    """Return the sorted ids of EOS and of the stop tokens in the checkpoint's generation config.

    Raises:
        InputError: the generation config cannot be read.
    """
    path = checkpoint / "generation_config.json"
    with loading("eos_token_id", path):
        declared = json.loads(path.read_bytes()).get("eos_token_id") if path.is_file() else None
        ids = declared if isinstance(declared, list) else [declared]
        return sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None})


def _special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer puts before plain text (BOS or none), found by trying."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    starts = (i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[: next(starts, 0)]


def _or_fault(work: Callable[..., Result], *arguments: Any) -> Result | RowFault:
    try:
        return work(*arguments)
    except RowFault as fault:
        return fault
