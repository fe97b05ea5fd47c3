"""Token ids, as TRL 1.16 makes them from the same rows; where they differ on purpose, how."""

import json
from collections.abc import Iterable
from itertools import chain
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read.messages import Content
from reflogp.stages.precompute.read.preferences import Preference
from reflogp.stages.precompute.tokens.ends import stop_ids
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow
from tests.checkpoints import CHATML, EXAMPLES, example_texts, make_tokenizer
from tests.precompute.conftest import (
    assistant,
    system,
    tokenizer_of,
    trained_tokenizer,
    user,
)

# Ends a turn in its own way, as Gemma's does, and refuses a system message as Gemma's did.
OWN_END = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Opens a thought for the model to fill, which an answered conversation does not have.
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
BARE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
BEGINS = "<s>" + CHATML
PLAIN: dict[str, Any] = {"prompt": "What is 2 + 2?\n", "chosen": "It is 4.", "rejected": "It is 5."}
CHAT: dict[str, Any] = {
    "prompt": [user("What is 2 + 2?")],
    "chosen": [assistant("It is 4.")],
    "rejected": [assistant("It is 5.")],
}

Triple = tuple[list[int], list[int], list[int]]


def tokenize(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, **rules: Any) -> TokenizedRow:
    preference = Preference(0, row["prompt"], row["chosen"], row["rejected"])
    return tokenizer_of(tokenizer, **rules)(preference)


def ours(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **rules: Any
) -> list[Triple]:
    return [triple(tokenize(row, tokenizer, **rules)) for row in rows]


def triple(row: TokenizedRow) -> Triple:
    assert row.chosen_ids is not None
    assert row.rejected_ids is not None
    return row.prompt_ids.tolist(), row.chosen_ids.tolist(), row.rejected_ids.tolist()


def trls(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Triple]:
    """What DPOTrainer makes of the rows; its method needs nothing of it but the tokenizer."""
    found = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer),
        datasets.Dataset.from_list(rows),
        tokenizer,
        SimpleNamespace(dataset_num_proc=None, max_length=None),
        "train",
    )
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in found]


def lengths(row: TokenizedRow) -> list[int]:
    return [len(ids) for ids in triple(row)]


def response(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, **rules: Any) -> str:
    return text(tokenizer, tokenize(row, tokenizer, **rules).chosen_ids)


def text(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int] | None) -> str:
    return str(tokenizer.decode(list(ids or []), clean_up_tokenization_spaces=False))


def ids_of(tokenizer: PreTrainedTokenizerBase, content: str) -> list[int]:
    return list(tokenizer(content, add_special_tokens=False)["input_ids"])


def example_rows() -> list[dict[str, Any]]:
    lines = (EXAMPLES / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: json.loads(line)[k] for k in ("prompt", "chosen", "rejected")} for line in lines]


def as_raw_text(row: dict[str, Any]) -> dict[str, str]:
    question = "\n\n".join(message["content"] for message in row["prompt"])
    answers = {side: " " + row[side][0]["content"] for side in ("chosen", "rejected")}
    return {"prompt": f"Question: {question}\nAnswer:", **answers}


# --- the yardstick -------------------------------------------------------------------------------


def test_messages_of_the_examples_get_trls_ids():
    rows = example_rows()
    assert len(rows) == 170
    assert ours(rows, trained_tokenizer()) == trls(rows, trained_tokenizer())


@pytest.mark.parametrize("bos", [False, True])
def test_raw_text_of_the_examples_gets_trls_ids(bos):
    rows = [as_raw_text(row) for row in example_rows()]
    tokenizer = trained_tokenizer(bos=bos)
    assert ours(rows, tokenizer) == trls(rows, tokenizer)


def test_cut_responses_of_the_examples_are_those_of_trls_collator():
    tokenizer = trained_tokenizer()
    limit, rows = 64, example_rows()
    fit = [row for row in trls(rows, tokenizer) if len(row[0]) < limit]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = DataCollatorForPreference(pad_token_id=-1, max_length=limit)(
        [dict(zip(names, row, strict=True)) for row in fit]
    )
    theirs = [[i for i in ids if i != -1] for ids in batch["input_ids"].tolist()]

    def cut(row: dict[str, Any]) -> Triple | Reason:
        try:
            return ours([row], tokenizer, max_length=limit)[0]
        except RowFault as fault:
            return fault.reason

    kept = [found for found in map(cut, rows) if found is not Reason.PROMPT_TOO_LONG]
    assert len(kept) == len(fit) < len(rows)
    for found, chosen, rejected in zip(kept, theirs, theirs[len(fit) :], strict=False):
        if isinstance(found, Reason):  # TRL trains on two that are the same now, to no effect
            assert found is Reason.IDENTICAL_RESPONSES
            assert chosen == rejected
        else:
            assert (found[0] + found[1], found[0] + found[2]) == (chosen, rejected)


def test_unlike_trl_a_text_that_begins_with_bos_gets_no_second_one():
    tokenizer = trained_tokenizer(bos=True)
    row = PLAIN | {"prompt": "<s>" + PLAIN["prompt"]}
    [(prompt, chosen, rejected)], [theirs] = ours([row], tokenizer), trls([row], tokenizer)
    assert theirs == ([tokenizer.bos_token_id, *prompt], chosen, rejected)
    assert ours([PLAIN], tokenizer) == [(prompt, chosen, rejected)]


MERGING = {"prompt": "The answ", "chosen": "er is 4.", "rejected": "ers are 5."}


def test_unlike_trl_the_prompt_keeps_its_ids_where_tokens_merge_across_the_border():
    tokenizer = trained_tokenizer()
    prompt = ids_of(tokenizer, MERGING["prompt"])
    whole = ids_of(tokenizer, MERGING["prompt"] + MERGING["chosen"])
    assert whole[: len(prompt)] != prompt  # they do merge
    [(kept, chosen, _)], [theirs] = ours([MERGING], tokenizer), trls([MERGING], tokenizer)
    assert kept == prompt
    assert len(theirs[0]) < len(prompt)
    assert text(tokenizer, kept + chosen) == "The answer is 4.<|im_end|>"


def test_unlike_trl_a_turn_that_no_stop_token_ends_gets_eos():
    tokenizer = trained_tokenizer(chat_template=OWN_END)
    eos = [tokenizer.eos_token_id]
    [(prompt, chosen, rejected)], [theirs] = ours([CHAT], tokenizer), trls([CHAT], tokenizer)
    assert (prompt, chosen, rejected) == (theirs[0], theirs[1] + eos, theirs[2] + eos)


def test_unlike_trl_raw_text_that_ends_with_another_stop_token_gets_no_eos():
    tokenizer = trained_tokenizer()
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    row = {side: PLAIN[side] + "<end_of_turn>" * (side != "prompt") for side in PLAIN}
    [mine], [theirs] = ours([row], tokenizer, stop_ids=[stop]), trls([row], tokenizer)
    assert mine[1] == theirs[1][:-1]
    assert mine[1][-1] == stop


# --- prompt and response -------------------------------------------------------------------------


@pytest.mark.parametrize("row", [PLAIN, CHAT, MERGING, *example_rows()[:20]])
@pytest.mark.parametrize("bos", [False, True])
def test_prompt_ids_are_those_that_the_model_sees_at_inference(row, bos):
    tokenizer = trained_tokenizer(bos=bos)
    if isinstance(row["prompt"], str):
        expected = tokenizer(row["prompt"])["input_ids"]
    else:
        expected = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
    assert tokenize(row, tokenizer).prompt_ids.tolist() == expected


def test_a_response_that_goes_on_after_a_space_gets_no_second_one():
    core = Tokenizer(models.BPE())  # begins each text with a space, as SentencePiece does
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    core.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False)
    core.train_from_iterator(example_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    row = tokenize(PLAIN | {"prompt": "2 + 2? ", "chosen": "Four."}, tokenizer)
    prompt, chosen, _ = triple(row)
    assert prompt == ids_of(tokenizer, "2 + 2? ")
    assert text(tokenizer, prompt + chosen) == "2 + 2? Four.</s>"


def test_a_template_that_renders_answered_prompts_otherwise_is_counted_and_follows_trl():
    tokenizer = trained_tokenizer(chat_template=THINKING)
    count = tokenizer_of(tokenizer)
    row = count(Preference(0, **CHAT))
    assert [triple(row)] == trls([CHAT], tokenizer)
    assert text(tokenizer, row.prompt_ids).endswith("<|im_start|>assistant\n")
    assert text(tokenizer, row.chosen_ids) == "It is 4.<|im_end|>\n"
    assert count.template_diverged == 1
    count(Preference(1, **PLAIN))
    assert count.template_diverged == 1


def test_an_unpaired_row_has_one_response():
    tokenizer = trained_tokenizer()
    both = tokenize(CHAT, tokenizer)
    good, bad = (tokenize(CHAT | {side: None}, tokenizer) for side in ("rejected", "chosen"))
    assert (good.chosen_ids, good.rejected_ids) == (both.chosen_ids, None)
    assert (bad.chosen_ids, bad.rejected_ids) == (None, both.rejected_ids)
    assert len({good.row_id, bad.row_id, both.row_id}) == 3


@pytest.mark.parametrize(
    ("template", "row", "reason", "detail"),
    [
        (None, CHAT, Reason.TEMPLATE_FAILED, "no chat template"),
        (OWN_END, CHAT | {"prompt": [system("Be brief."), user("Hi.")]}, Reason.TEMPLATE_FAILED,
         "refused the messages: no system role"),
        (CHATML, CHAT | {"prompt": [{"role": "\ud800", "content": "Hi."}]}, Reason.BAD_MESSAGES,
         "does not know the role"),
        (CHATML, CHAT | {"prompt": [{"role": "function_call", "content": "{}"}]},
         Reason.BAD_MESSAGES, "does not know the role 'function_call'"),
        ("{{ 1 // 0 }}", CHAT, Reason.TEMPLATE_FAILED, "by zero"),
        ("{% if messages | length > 1 %}{{ messages[-1]['content'] }}{% endif %}", CHAT,
         Reason.EMPTY_PROMPT, "no tokens"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_rendered_say_why(template, row, reason, detail):
    with pytest.raises(RowFault, match=detail) as caught:
        tokenize(row, trained_tokenizer(chat_template=template))
    assert caught.value.reason is reason


# --- ends and beginnings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "stops", "row", "expected"),
    [
        (None, [], PLAIN, "It is 4.<|im_end|>"),
        (None, [], PLAIN | {"chosen": "It is 4.<|im_end|>"}, "It is 4.<|im_end|>"),
        (None, ["<end_of_turn>"], PLAIN | {"chosen": "4<end_of_turn>"}, "4<end_of_turn>"),
        (None, [], PLAIN | {"chosen": "4<end_of_turn>"}, "4<end_of_turn><|im_end|>"),
        (None, [], PLAIN | {"chosen": "4<|im_end|>\n"}, "4<|im_end|>\n<|im_end|>"),
        (None, [], PLAIN | {"chosen": "<|im_end|> 4"}, "<|im_end|> 4<|im_end|>"),
        (CHATML, [], CHAT, "It is 4.<|im_end|>\n"),
        (CHATML, [], CHAT | {"chosen": [assistant("a<|im_end|>b")]}, "a<|im_end|>b<|im_end|>\n"),
        (OWN_END, [], CHAT, "It is 4.<end_of_turn>\n<|im_end|>"),
        (OWN_END, ["<end_of_turn>"], CHAT, "It is 4.<end_of_turn>\n"),
        (BARE, [], CHAT, "It is 4.\n<|im_end|>"),
        (BARE, [], CHAT | {"chosen": [assistant("<|im_end|> 4")]}, "<|im_end|> 4\n<|im_end|>"),
    ],
)
def test_a_response_ends_with_a_stop_token_once(template, stops, row, expected):
    tokenizer = trained_tokenizer(chat_template=template)
    ids = tokenizer.convert_tokens_to_ids(stops)
    assert response(row, tokenizer, stop_ids=ids) == expected


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (None, ["<|im_end|>"]),
        ({}, ["<|im_end|>"]),
        ({"eos_token_id": None}, ["<|im_end|>"]),
        ({"eos_token_id": "<end_of_turn>"}, ["<|im_end|>", "<end_of_turn>"]),
        ({"eos_token_id": ["<end_of_turn>", "<|im_end|>"]}, ["<|im_end|>", "<end_of_turn>"]),
    ],
)
def test_stop_tokens_are_eos_and_what_the_generation_config_declares(declared, expected, tmp_path):
    tokenizer = trained_tokenizer()
    if declared is not None:
        names = declared.get("eos_token_id")
        ids = names and tokenizer.convert_tokens_to_ids(names)
        (tmp_path / "generation_config.json").write_text(
            json.dumps(declared | {"eos_token_id": ids})
        )
    assert stop_ids(tokenizer, tmp_path) == sorted(tokenizer.convert_tokens_to_ids(expected))


@pytest.mark.parametrize(
    ("options", "row", "begins"),
    [
        ({"bos": False}, PLAIN, 0),
        ({"bos": True}, PLAIN, 1),
        ({"bos": True}, PLAIN | {"prompt": "<s>" + PLAIN["prompt"]}, 1),
        ({"bos": False}, PLAIN | {"prompt": "<s>" + PLAIN["prompt"]}, 1),
        ({"bos": True}, MERGING, 1),
        ({"bos": True}, CHAT, 0),
        ({"bos": True, "chat_template": BEGINS}, CHAT, 1),
        ({"bos": False, "chat_template": BEGINS}, CHAT, 1),
    ],
)
@pytest.mark.parametrize("truncate", ["response", "prompt"])
def test_bos_is_never_doubled_and_never_cut(options, row, begins, truncate):
    tokenizer = trained_tokenizer(**options)
    whole = tokenize(row, tokenizer)
    limit = sum(lengths(whole)[::2]) - 1
    for found in (whole, tokenize(row, tokenizer, max_length=limit, truncate=truncate)):
        prompt, chosen, rejected = triple(found)
        bos = tokenizer.bos_token_id
        assert [i for i, token in enumerate(prompt) if token == bos] == [0] * begins
        assert bos not in chosen + rejected


# --- truncation ----------------------------------------------------------------------------------

LONG: dict[str, Any] = {
    "prompt": "a b c d e f g h i j", "chosen": " k l m n o p q", "rejected": " k l x",
}  # fmt: skip


def test_the_responses_lose_their_ends():
    tokenizer = trained_tokenizer()
    whole = tokenize(LONG, tokenizer)
    prompt, _, rejected = lengths(whole)
    cut = tokenize(LONG, tokenizer, max_length=prompt + rejected, truncate="response")
    assert cut.prompt_ids == whole.prompt_ids
    assert triple(cut)[1] == triple(whole)[1][:rejected]
    assert cut.rejected_ids == whole.rejected_ids
    assert (cut.prompt_truncated, cut.chosen_truncated, cut.rejected_truncated) == (0, 1, 0)


@pytest.mark.parametrize("bos", [False, True])
def test_the_prompt_loses_its_beginning_for_both_responses_alike(bos):
    tokenizer = trained_tokenizer(bos=bos)
    whole = tokenize(LONG, tokenizer)
    limit = sum(lengths(whole)[:2]) - 5
    cut = tokenize(LONG, tokenizer, max_length=limit, truncate="prompt")
    assert cut.prompt_ids == whole.prompt_ids[:bos] + whole.prompt_ids[bos + 5 :]
    assert (cut.chosen_ids, cut.rejected_ids) == (whole.chosen_ids, whole.rejected_ids)
    assert (cut.prompt_truncated, cut.chosen_truncated, cut.rejected_truncated) == (1, 0, 0)


@pytest.mark.parametrize("bos", [False, True])
def test_where_the_prompt_cannot_make_room_one_token_of_it_stays_and_the_response_is_cut(bos):
    tokenizer = trained_tokenizer(bos=bos)
    whole = tokenize(LONG, tokenizer)
    cut = tokenize(LONG, tokenizer, max_length=5, truncate="prompt")
    assert cut.prompt_ids == (whole.prompt_ids[:1] if bos else whole.prompt_ids[-1:])
    assert triple(cut)[1] == triple(whole)[1][:4]
    assert cut.prompt_truncated
    assert cut.chosen_truncated


def test_the_head_of_a_chatml_turn_is_no_bos_that_would_stay():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})  # as SmolLM2 has it
    whole = tokenize(CHAT, tokenizer)
    limit = sum(lengths(whole)[:2]) - 3
    assert (
        tokenize(CHAT, tokenizer, max_length=limit, truncate="prompt").prompt_ids
        == (whole.prompt_ids[3:])
    )


@pytest.mark.parametrize(
    ("truncate", "room", "reason", "detail"),
    [
        ("never", 0, Reason.TOO_LONG, r"^{total} tokens, over max_length {limit}$"),
        ("response", 0, Reason.PROMPT_TOO_LONG, r"{prompt} tokens, so max_length {limit} leaves"),
        ("response", -4, Reason.PROMPT_TOO_LONG, r"raise --max-length, or give --truncate prompt$"),
        ("response", 1, Reason.IDENTICAL_RESPONSES, r"same tokens within max_length {limit}$"),
    ],
)
def test_what_cannot_be_cut_is_set_aside(truncate, room, reason, detail):
    tokenizer = trained_tokenizer()
    prompt, chosen, _ = lengths(tokenize(LONG, tokenizer))
    expected = detail.format(total=prompt + chosen, prompt=prompt, limit=prompt + room)
    with pytest.raises(RowFault, match=expected) as caught:
        tokenize(LONG, tokenizer, max_length=prompt + room, truncate=truncate)
    assert caught.value.reason is reason


@pytest.mark.parametrize("truncate", ["response", "prompt", "never"])
def test_a_row_that_just_fits_is_not_touched(truncate):
    tokenizer = trained_tokenizer()
    whole = tokenize(LONG, tokenizer)
    limit = sum(lengths(whole)[:2])
    assert tokenize(LONG, tokenizer, max_length=limit, truncate=truncate) == whole


# --- row ids -------------------------------------------------------------------------------------


def test_a_row_id_depends_on_the_ids_of_its_own_row_only():
    rows = [Preference(i, **row) for i, row in enumerate(example_rows())]
    forward, backward = tokenizer_of(trained_tokenizer()), tokenizer_of(trained_tokenizer())
    ids = [forward(row).row_id for row in rows]
    assert [backward(row).row_id for row in reversed(rows)] == ids[::-1]
    assert len(set(ids)) == len(rows)


def test_copies_of_a_row_have_ids_of_their_own():
    tokenizer = tokenizer_of(trained_tokenizer())
    first, second, third = (tokenizer(Preference(i, **CHAT)).row_id for i in range(3))
    assert [second, third] == [f"{first}-1", f"{first}-2"]


# --- properties ----------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(prompt=texts, chosen=texts, chat=st.booleans(), bos=st.booleans())
@settings(max_examples=150)
def test_the_ids_decode_to_the_rendered_text(prompt, chosen, chat, bos):
    tokenizer = trained_tokenizer(bos=bos)
    row: dict[str, Content | None] = {"prompt": prompt, "chosen": chosen, "rejected": None}
    expected = "<s>" * bos + prompt + chosen + tokenizer.eos_token
    if chat:
        row |= {"prompt": [user(prompt)], "chosen": [assistant(chosen)]}
        expected = tokenizer.apply_chat_template([user(prompt), assistant(chosen)], tokenize=False)
        expected += tokenizer.eos_token * bos  # there EOS is </s>, which ChatML does not write
    found = tokenize(row, tokenizer)
    assert text(tokenizer, chain(found.prompt_ids, found.chosen_ids or [])) == expected


@given(
    prompt=texts,
    chosen=texts,
    rejected=texts,
    bos=st.booleans(),
    max_length=st.integers(2, 60),
    truncate=st.sampled_from(["response", "prompt", "never"]),
)
@settings(max_examples=300)
def test_no_row_is_longer_than_max_length_and_none_is_without_prompt_or_response(
    prompt, chosen, rejected, bos, max_length, truncate
):
    assume(chosen != rejected)
    tokenizer = trained_tokenizer(bos=bos)
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    whole = tokenize(row, tokenizer)
    try:
        cut = tokenize(row, tokenizer, max_length=max_length, truncate=truncate)
    except RowFault as fault:
        assert fault.reason in {  # noqa: PT017 - either outcome is right
            Reason.TOO_LONG, Reason.PROMPT_TOO_LONG, Reason.IDENTICAL_RESPONSES,
        }  # fmt: skip
        return
    kept = cut.prompt_ids[bos:]
    assert cut.prompt_ids
    assert cut.prompt_ids[:bos] == whole.prompt_ids[:bos]
    assert kept == whole.prompt_ids[len(whole.prompt_ids) - len(kept) :]
    for ids, full in zip(triple(cut)[1:], triple(whole)[1:], strict=True):
        assert ids
        assert ids == full[: len(ids)]
        assert len(cut.prompt_ids) + len(ids) <= max_length
