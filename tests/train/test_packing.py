"""Prompts with branches, laid end to end: values and gradients are those of one sequence at a time, on any model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif_cli.errors import ModelError
from rlaif_cli.train.nn import attention
from rlaif_cli.train.nn.attention import branch_attention, varlen_branch_attention, varlen_inputs
from rlaif_cli.train.nn.heads import response_logprobs
from rlaif_cli.train.nn.packing import Group, Layout, pack

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"num_key_value_heads": 2}),
    "qwen2": (transformers.Qwen2Config, {"num_key_value_heads": 1}),
    "qwen3": (transformers.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 16}),
    "gemma2": (
        transformers.Gemma2Config,
        {"num_key_value_heads": 2, "head_dim": 16, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 4},
    ),
    "gpt-oss": (transformers.GptOssConfig, {"num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4}),
    "gpt-neox": (transformers.GPTNeoXConfig, {"attention_dropout": 0.0, "hidden_dropout": 0.0}),
}


def model_of(family: str, **more: Any) -> Any:
    config, options = FAMILIES[family]
    torch.manual_seed(1)
    made = config(**SIZES, **options, initializer_range=0.2, **more)
    return transformers.AutoModelForCausalLM.from_config(made, attn_implementation=attention.register()).train()


MODELS = {family: model_of(family) for family in FAMILIES}

shapes = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=3, max_size=3)), min_size=1, max_size=4
)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(lengths=shapes)
def test_values_and_gradients_are_those_of_single_sequences(family: str, lengths: Any) -> None:
    drawn = torch.Generator().manual_seed(len(lengths))

    def tokens(count: int) -> list[int]:
        return torch.randint(0, 50, (count,), generator=drawn).tolist()

    groups = [Group(tokens(prompt), [tokens(length) for length in responses]) for prompt, responses in lengths]
    model, batch = MODELS[family], pack(groups)
    packed = response_logprobs(model, batch, 1.0)[batch.response_mask]
    packed.mean().backward()
    from_packed = gradients(model)
    single = own_logprobs(model, groups)
    single.mean().backward()
    torch.testing.assert_close(packed, single, atol=2e-5, rtol=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(from_packed[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bf16_attention_on_a_cpu_is_that_of_fp32_to_its_own_precision() -> None:
    layout = Layout(((30, 7, 11, 1), (2, 40, 3, 5)))
    drawn = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 3, 99, 16, generator=drawn) for _ in "qkv"]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [x.clone().to(dtype).requires_grad_() for x in inputs]
        output = branch_attention(*leaves, layout)  # type: ignore[call-arg]
        output.square().sum().backward()
        results.append([output.float(), *(leaf.grad.float() for leaf in leaves)])  # type: ignore[union-attr]
    for fp32, bf16 in zip(*results, strict=True):
        assert (fp32 - bf16).norm() < 0.02 * fp32.norm()


def test_a_kernel_for_all_branches_is_given_what_each_one_sees() -> None:
    """Stands in for the kernel, which only a GPU has: query i of a sequence sees the keys up to the i-th last."""
    layout = Layout(((30, 7, 11, 1), (2, 40, 3, 5)))
    drawn = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 3, 99, 16, generator=drawn) for _ in "qkv")
    at = varlen_inputs(layout, query.device)
    assert (at.max_query_length, at.max_key_length) == (42, 42)
    outputs = []
    for place in range(len(at.query_offsets) - 1):
        q = query[:, :, at.query_offsets[place] : at.query_offsets[place + 1]]
        keys = at.keys[at.key_offsets[place] : at.key_offsets[place + 1]]
        outputs.append(attention.causal_attention(q, key[:, :, keys], value[:, :, keys]))
    torch.testing.assert_close(torch.cat(outputs, dim=2), branch_attention(query, key, value, layout))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_kernel_for_all_branches_computes_what_one_for_each_does() -> None:
    layout = Layout(((30, 7, 11, 1), (2, 40, 3, 5)))
    inputs = [torch.randn(1, heads, 99, 64, device="cuda") for heads in (6, 2, 2)]
    leaves = [x.clone().requires_grad_() for x in inputs]
    query, *pair = leaves
    exact = branch_attention(query, *(x.repeat_interleave(3, dim=1) for x in pair), layout).transpose(1, 2)  # type: ignore[call-arg]
    half = [x.clone().bfloat16().requires_grad_() for x in inputs]
    found = varlen_branch_attention(*half, layout)  # type: ignore[call-arg]
    weights = torch.randn_like(exact)
    for output in (exact, found):
        (output * weights).sum().backward()
    for a, b in [(exact, found), *((x.grad, y.grad) for x, y in zip(leaves, half, strict=True))]:
        assert (a - b).norm() < 0.01 * a.norm()


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt-oss"])
def test_windows_caps_and_sinks_are_those_of_the_model(family: str) -> None:
    """Prompt and branches are longer than the window; torch's own kernel knows neither the cap nor the sinks."""
    model = model_of(family, sliding_window=5, **({"use_sliding_window": True} if family == "qwen2" else {}))
    groups = [Group([*range(7)], [[8, 9, 10, 11], [*range(12, 20)]]), Group([20], [[21], [22]])]
    batch = pack(groups)
    with torch.no_grad():
        packed = response_logprobs(model, batch, 1.0)[batch.response_mask]
        sampling_sees = own_logprobs(model, groups)  # without a layout, as generation calls it
        model.set_attn_implementation("eager")
        torch.testing.assert_close(packed, own_logprobs(model, groups), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(packed, sampling_sees, atol=2e-5, rtol=1e-5)


def test_what_attention_is_asked_for_and_does_not_know_is_refused() -> None:
    with torch.no_grad(), pytest.raises(ModelError, match=r"attention uses top_keys,.* not support"):
        call(top_keys=4)


def call(**options: Any) -> Any:
    """The attention of one layer, as a model of transformers calls it."""
    inputs = [torch.randn(1, 2, 5, 8) for _ in "qkv"]
    return transformers.AttentionInterface()[attention.register()](
        torch.nn.Module(), *inputs, None, layout=Layout(((3, 2),)), dropout=0.0, position_ids=None, **options
    )


def own_logprobs(model: Any, groups: list[Group]) -> torch.Tensor:
    """By the model's own forward, a sequence at a time."""
    found = []
    for group in groups:
        for response in group.responses:
            logits = model(input_ids=torch.tensor([[*group.prompt, *response]])).logits[0, len(group.prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return torch.cat(found)
