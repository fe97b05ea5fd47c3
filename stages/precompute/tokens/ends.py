"""Where a sequence begins, ends and is cut: BOS, stop tokens and the maximum length."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.model.loading import loading
from reflogp.stages.precompute.config import Truncate


@dataclass(frozen=True)
class TokenRules:
    """The rules that, with the tokenizer, decide the ids of a row.

    Attributes:
        max_length: largest number of tokens of prompt and response together.
        truncate: which of the two loses tokens; `never` quarantines the row instead.
        stop_ids: ids that end a response.
        vocabulary: rows of the model's embeddings; None if unknown.
    """

    max_length: int
    truncate: Truncate
    stop_ids: frozenset[int]
    vocabulary: int | None = None


class Ends:
    """The ends of the sequences of a tokenizer under its rules.

    Attributes:
        bos: the ids that the tokenizer puts before plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rules: TokenRules) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        self.bos = _special_prefix(tokenizer)

    def close(self, response: list[int], *, raw: bool) -> list[int]:
        """Add EOS to a response that no stop token ends."""
        eos = self._tokenizer.eos_token_id
        if eos is None or (response and response[-1] in self._rules.stop_ids):
            return response
        if not raw and self.ends_in_stop(response):
            return response
        return [*response, eos]

    def ends_in_stop(self, response: list[int]) -> bool:
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
        if self.bos and prompt[: len(self.bos)] == self.bos:
            return self.bos
        bos = self._tokenizer.bos_token_id
        return prompt[:1] if prompt[:1] == [bos] and bos not in prompt[1:] else []

    def truncate(
        self, prompt: list[int], responses: list[list[int]]
    ) -> tuple[list[int], list[list[int]]]:
        """Cut prompt and responses to `max_length`.

        Raises:
            RowFault: they must not be cut, or nothing of a response would be left.
        """
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
