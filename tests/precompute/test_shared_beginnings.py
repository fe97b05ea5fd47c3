"""What is asked of the engine: every log-prob once, and none that its cache could have taken."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reflogp.stages.precompute.score.engines.protocol import Request
from reflogp.stages.precompute.score.engines.shared_beginnings import Question, ask_once


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


# Two tokens and short sequences, so that copies, beginnings and continuations are all common.
tokens = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(lambda found: ids(*found))


@st.composite
def masked_request(draw: st.DrawFn) -> Request:
    """A request of which any tokens are to be scored, perhaps none."""
    response = draw(tokens)
    marks = st.lists(st.booleans(), min_size=len(response), max_size=len(response))
    mask = draw(st.none() | marks.map(lambda found: np.array(found, bool)))
    return Request(draw(tokens), response, mask)


requests = st.lists(masked_request(), max_size=8)


def name_of(context: np.ndarray, token: int) -> float:
    """A number, exact in float32, that stands for log p(token | context)."""
    return float(int("1" + "".join(map(str, [*context, token])), 2))


def answer(question: Question) -> np.ndarray:
    pairs = zip(question.rows, question.targets, strict=True)
    sequence = np.array(question.token_ids, np.int32)
    named = [name_of(sequence[: row + 1], target) for row, target in pairs]
    return np.array(named, np.float32)


@given(requests)
def test_every_request_gets_each_of_its_tokens_from_the_right_context(wanted):
    asked = ask_once(wanted)
    found = asked.collect([answer(question) for question in asked.questions])
    for request, logps in zip(wanted, found, strict=True):
        start = len(request.prompt_ids)
        sequence = request.token_ids
        truth = [name_of(sequence[:at], sequence[at]) for at in start + request.wanted]
        assert logps.tolist() == truth


@given(tokens, requests)
def test_no_row_that_is_asked_for_was_computed_for_an_earlier_response(prompt, responses):
    computed: set[bytes] = set()
    asked: list[tuple[bytes, int]] = []
    siblings = [response._replace(prompt_ids=prompt) for response in responses]
    for question in ask_once(siblings).questions:
        sequence = np.array(question.token_ids, np.int32)
        contexts = [sequence[: row + 1].tobytes() for row in question.rows]
        assert not computed & set(contexts)
        assert (np.diff(question.rows) >= 0).all()
        computed |= {sequence[:end].tobytes() for end in range(1, len(sequence) + 1)}
        asked += zip(contexts, question.targets.tolist(), strict=True)
    assert len(asked) == len(set(asked))


def test_two_responses_that_begin_alike_share_the_rows_of_their_beginning():
    prompt = ids(7, 7, 7)
    first, second = ask_once(
        [Request(prompt, ids(1, 2, 3, 4)), Request(prompt, ids(1, 2, 5, 6))]
    ).questions
    # the row of token 2, at position 4, predicts both 3 and 5
    assert first.rows.tolist() == [2, 3, 4, 4, 5]
    assert sorted(first.targets.tolist()) == [1, 2, 3, 4, 5]
    assert (second.rows.tolist(), second.targets.tolist()) == ([5], [6])


def test_a_copy_and_a_response_that_differs_in_its_last_token_are_not_computed():
    prompt = ids(7)
    responses = [ids(1, 2, 3), ids(1, 2, 3), ids(1, 2, 4)]
    assert len(ask_once([Request(prompt, response) for response in responses]).questions) == 1


def test_the_first_of_two_responses_is_asked_for_tokens_that_only_the_second_wants():
    prompt, marks = ids(7), np.array([False, True, False])
    context, whole = Request(prompt, ids(1, 2, 3), marks), Request(prompt, ids(1, 2, 4), ~marks)
    (question,) = ask_once([context, whole]).questions
    assert (question.rows.tolist(), question.targets.tolist()) == ([0, 1, 2], [1, 2, 4])


def test_a_response_of_context_only_is_not_computed():
    request = Request(ids(7), ids(1, 2), np.zeros(2, bool))
    asked = ask_once([request])
    assert asked.questions == []
    assert [logps.tolist() for logps in asked.collect([])] == [[]]


def test_a_prompt_comes_before_the_longer_prompts_that_begin_with_it():
    long, short = Request(ids(7, 1, 2, 9), ids(3)), Request(ids(7), ids(1, 2, 300))
    questions = ask_once([long, short]).questions
    assert questions[0].token_ids == [7, 1, 2, 300]
