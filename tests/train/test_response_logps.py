"""Log-probs of response tokens against a plain float32 forward of the same model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from reflogp.stages.forward import chunked_head
from reflogp.stages.forward.response_logps import (
    predicting,
    response_logps,
    sum_by_row,
    token_logps,
)
from tests.truth import true_logps

VOCABULARY = 300


def padded(sequences):
    length = max(len(prompt) + len(response) for prompt, response in sequences)
    ids = torch.full((len(sequences), length), 7)
    attention, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        attention[row, :end] = 1
        scored[row, len(prompt) : end] = True
    return ids, attention, scored


def score(model, sequences):
    """Log-probs of the responses of padded sequences, and the sequence that each belongs to."""
    ids, attention, scored = padded(sequences)
    rows, targets, owners = predicting(ids, scored)
    inputs = {"input_ids": ids, "attention_mask": attention}
    return response_logps(model, inputs, rows, targets), owners


SEQUENCES = [
    ([5, 6, 7], [8, 9, 10, 11]),
    ([5], [12]),
    ([20, 21, 22, 23, 24, 25, 26], [27, 28]),
    ([5, 6, 7], [8, 9, 200]),
]


def gemma2():
    # soft-caps its logits after the head: what is around the head must still be done
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, initializer_range=0.5,
            final_logit_softcapping=5.0, attn_implementation="eager",
        )
    ).eval()  # fmt: skip


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    ).eval()


@pytest.mark.parametrize("build", [gemma2, gpt2])
def test_equal_a_plain_forward_whatever_the_model_does_around_its_head(build):
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        logps, rows = score(model, SEQUENCES)
    for row, (prompt, response) in enumerate(SEQUENCES):
        expected = true_logps(model, prompt, response).float()
        assert torch.allclose(logps[rows == row], expected, atol=1e-5)


def granite():
    # divides its logits after the head
    return GraniteForCausalLM(
        GraniteConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5, logits_scaling=3.0,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("build", [gemma2, gpt2, granite])
@pytest.mark.parametrize("head_rows", [1, 3, 4, 100])
def test_a_head_that_takes_few_rows_at_a_time_gives_the_same(build, head_rows, monkeypatch):
    monkeypatch.setitem(chunked_head._HEAD_ROWS, "cpu", head_rows)
    torch.manual_seed(0)
    model = build()
    seen, layers = [], []
    model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: seen.append(out.shape))
    attention = next(m for m in model.modules() if type(m).__name__.endswith("Attention"))
    attention.register_forward_hook(lambda *_: layers.append(1))
    with torch.inference_mode():
        logps, rows = score(model, SEQUENCES)
    scored = sum(len(response) for _, response in SEQUENCES)
    # and one row for the model as a whole, and one for the trial that its first pass makes
    assert sum(shape[-2] for shape in seen) - 2 == len(logps) == scored
    assert max(shape[-2] for shape in seen) <= head_rows
    assert len(layers) == 1
    for row, (prompt, response) in enumerate(SEQUENCES):
        expected = true_logps(model, prompt, response).float()
        assert torch.allclose(logps[rows == row], expected, atol=1e-5)
    assert "forward" not in vars(model.base_model)


class Wrapped(torch.nn.Module):
    """As DistributedDataParallel wraps a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


@pytest.mark.parametrize(
    "wrap", [Wrapped, lambda model: get_peft_model(model, LoraConfig(target_modules=["c_attn"]))]
)
def test_a_wrapped_model_gives_the_same(wrap, monkeypatch):
    monkeypatch.setitem(chunked_head._HEAD_ROWS, "cpu", 2)
    model = gpt2()
    with torch.inference_mode():
        whole, _ = score(model, SEQUENCES)
        found, _ = score(wrap(model).eval(), SEQUENCES)
    assert torch.equal(found, whole)


def test_the_gradient_equals_that_of_a_plain_forward():
    torch.manual_seed(0)
    model = gpt2()
    logps, rows = score(model, SEQUENCES)
    (sum_by_row(logps, rows, len(SEQUENCES)) * torch.tensor([1.0, -2.0, 3.0, 0.5])).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for (prompt, response), weight in zip(SEQUENCES, [1.0, -2.0, 3.0, 0.5], strict=True):
        (weight * true_logps(model, prompt, response).sum()).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-4), name


def test_a_fresh_adapter_changes_nothing(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        before, _ = score(model, SEQUENCES)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        after, _ = score(adapted.eval(), SEQUENCES)
    assert torch.equal(before, after)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200])
def test_chunked_log_softmax_equals_torchs(rows, scale):
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(rows)) * scale
    targets = torch.arange(rows) % VOCABULARY
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)
    with torch.no_grad():
        assert torch.allclose(token_logps(logits, targets), expected, atol=1e-5, rtol=1e-6)


def test_chunked_log_softmax_does_not_write_into_the_logits():
    logits = torch.randn(3, VOCABULARY)
    before = logits.clone()
    with torch.no_grad():
        token_logps(logits, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(logits, before)
