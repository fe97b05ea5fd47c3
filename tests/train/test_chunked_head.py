"""The head in chunks, with its own backward pass: the numbers and gradients of autograd."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
)

from reflogp.stages.forward import chunked_head
from reflogp.stages.forward.anatomy import Anatomy
from reflogp.stages.forward.chunked_head import head_logps, log_squares, logps_and_slopes
from reflogp.stages.forward.response_logps import response_logps, response_logps_and_squares

VOCABULARY = 300


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(chunked_head._HEAD_ROWS, "cpu", 7)
    monkeypatch.setitem(chunked_head._SOFTMAX_ROWS, "cpu", 3)


def gemma2():  # soft-caps its logits, and ties its head to its embeddings
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, initializer_range=0.5,
            final_logit_softcapping=5.0, attn_implementation="eager",
        )
    )  # fmt: skip


def olmoe():  # a mixture of experts, whose body gives more than hidden states
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
            initializer_range=0.3, pad_token_id=0, experts_implementation="eager",
        )
    )  # fmt: skip


def with_adapter(model, **options):
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **options))
    with torch.no_grad():  # B starts at 0, and so would all gradients of A
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return adapted


def head_adapted(model):
    return with_adapter(model, rank_pattern={}, modules_to_save=["lm_head"])


BUILDS = {
    "soft-capped, tied": gemma2,
    "experts": olmoe,
    "experts, LoRA": lambda: with_adapter(olmoe()),
    "experts, LoRA, head trained": lambda: head_adapted(olmoe()),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_numbers_and_gradients_equal_those_of_the_whole_model(build):
    torch.manual_seed(0)
    model = build().double()
    ids = torch.randint(1, VOCABULARY, (3, 12))
    rows = torch.tensor([3, 4, 5, 11, 13, 14, 15, 16, 17, 30, 34, 34])
    targets = torch.randint(1, VOCABULARY, rows.shape)
    weights = torch.randn(len(rows), dtype=torch.float64)

    def plain():
        logits = model(input_ids=ids).logits.flatten(0, 1)[rows]
        return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)

    def gradients(logps):
        model.zero_grad()
        (logps * weights).sum().backward()
        named = model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    expected = plain()
    truth = gradients(expected)
    found = response_logps(model, {"input_ids": ids}, rows, targets)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    got = gradients(found)
    assert got.keys() == truth.keys()
    assert max(float(gradient.abs().max()) for gradient in truth.values()) > 0.01
    for name, gradient in truth.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-10, rtol=1e-8, msg=name)

    same, squares = response_logps_and_squares(model, {"input_ids": ids}, rows, targets)
    assert torch.equal(same, found)
    assert not squares.requires_grad
    probabilities = model(input_ids=ids).logits.flatten(0, 1)[rows].softmax(-1)
    torch.testing.assert_close(squares, probabilities.square().sum(-1).log(), atol=1e-10, rtol=0)
    assert all(torch.equal(gradient, got[name]) for name, gradient in gradients(same).items())


@pytest.mark.parametrize("rows", [1, 7, 8, 20])
def test_the_derivatives_pass_gradcheck(rows):
    torch.manual_seed(0)
    hidden = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(rows) % 11

    def trained(hidden, weight):
        return head_logps(lambda x: x @ weight.T, hidden, targets, [weight])[0]

    def frozen(hidden):
        return head_logps(lambda x: x @ weight.detach().T, hidden, targets, [])[0]

    assert torch.autograd.gradcheck(trained, (hidden, weight))
    assert torch.autograd.gradcheck(frozen, (hidden,))


def test_no_row_at_all_has_no_gradient_and_no_error(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    nothing = torch.zeros(0, dtype=torch.int64)
    logps = response_logps(
        model, {"input_ids": torch.ones(1, 3, dtype=torch.int64)}, nothing, nothing
    )
    assert logps.shape == (0,)
    logps.sum().backward()


def test_only_a_chunk_of_logits_is_there_at_a_time(checkpoint):
    model = with_adapter(AutoModelForCausalLM.from_pretrained(checkpoint))
    shapes = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, __, output: shapes.append(output.shape[-2]))
    ids = torch.randint(5, 100, (2, 30))
    rows = torch.arange(50)
    response_logps(model, {"input_ids": ids}, rows, ids.flatten()[:50])  # tries one row more
    for run in (response_logps, lambda *inputs: response_logps_and_squares(*inputs)[0]):
        shapes.clear()
        run(model, {"input_ids": ids}, rows, ids.flatten()[:50]).sum().backward()
        assert max(shapes) == 7
        assert sum(shapes) == 1 + 50  # the frozen head runs once a row, and for the whole model


@pytest.mark.parametrize(("rows", "again"), [(7, 0), (10, 5), (50, 49)])
def test_a_trained_head_runs_again_for_all_chunks_but_the_last(checkpoint, rows, again):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    shapes = []
    model.get_output_embeddings().register_forward_hook(
        lambda _, __, output: shapes.append(output.shape[-2])
    )
    ids = torch.randint(5, 100, (2, 30))
    logps = response_logps(model, {"input_ids": ids}, torch.arange(rows), ids.flatten()[:rows])
    logps.sum().backward()
    assert max(shapes) <= 7
    # for the whole model, for the trial that the first pass makes, and for the rows
    assert sum(shapes) == 1 + 1 + rows + again


def test_a_graph_that_is_kept_gives_the_same_gradients_again():
    torch.manual_seed(0)
    hidden = torch.randn(20, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    logps, _ = head_logps(lambda x: x @ weight.T, hidden, torch.arange(20) % 11, [weight])
    first, again = (
        torch.autograd.grad(logps.square().sum(), (hidden, weight), retain_graph=True)
        for _ in range(2)
    )
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(other, one)


def test_under_autocast_the_backward_pass_rounds_as_the_forward_pass_did(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    kinds = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    ids = torch.randint(5, 100, (1, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = response_logps(model, {"input_ids": ids}, torch.arange(11), ids[0, 1:])
    logps.sum().backward()
    assert logps.dtype == torch.float32
    assert set(kinds) == {torch.bfloat16}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_model_is_left_as_it_was(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    anatomy = Anatomy(model)
    hidden = anatomy.hidden(model, torch.arange(3), input_ids=torch.ones(1, 3, dtype=torch.int64))
    anatomy.head(hidden)
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert model(torch.ones(2, 5, dtype=torch.int64)).logits.shape[:2] == (2, 5)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 50])
def test_log_probs_and_slopes_equal_torchs(rows, scale):
    generator = torch.Generator().manual_seed(rows)
    logits = (torch.randn(rows, VOCABULARY, generator=generator) * scale).requires_grad_()
    targets = torch.arange(rows) % VOCABULARY
    before = logits.detach().clone()
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)
    expected.sum().backward()
    found, slopes = logps_and_slopes(logits, targets)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(slopes, logits.grad, atol=1e-6, rtol=1e-5)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 50])
def test_log_squares_are_those_of_the_probabilities(rows, scale):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, VOCABULARY, generator=generator) * scale
    expected = torch.logsumexp(2 * torch.log_softmax(logits.double(), -1), -1)
    found = log_squares(logits.requires_grad_())
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-6)


def test_log_squares_of_a_sure_and_of_a_flat_distribution():
    sure = torch.full((1, VOCABULARY), -torch.inf)
    sure[0, 5] = 3.0
    assert log_squares(torch.zeros(1, 8)).item() == pytest.approx(-torch.tensor(8.0).log().item())
    assert log_squares(sure.clamp(min=-1e30)).item() == 0
