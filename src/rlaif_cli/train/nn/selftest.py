"""Find out by a test how a model can be trained: on packed sequences, one sequence at a time, or not at all.

A few random tokens go through the model as in training, and through its own unmodified forward. Models that mix tokens
other than by attention (convolutions, state spaces, linear attention), or that do not pass the layout on to their
attention, cannot pack. Models that are not causal, or random in training, are refused.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif_cli.errors import ModelError
from rlaif_cli.models.transformers_internals import attention_name, can_set_attention
from rlaif_cli.train.nn import attention
from rlaif_cli.train.nn.forward import response_logprobs, rewards
from rlaif_cli.train.nn.packing import Group, Packed, pack

# In nats, or units of a reward. In fp32 a correct model differs by 1e-6 to 1e-3; the smallest error seen was 0.07. If
# even a different prompt changes little (small random weights), errors are small too: the bound is a share of that.
_TOLERANCE, _SHARE, _NOISE = 1e-2, 0.02, 2e-5
_WINDOW = 4  # tokens; replaces a model's own windows, so that they matter in such short sequences
_LENGTH = 9  # tokens in every test sequence
_SHAPES = ((6, 3), (2, 7))  # (prompt, response) lengths of two groups with two branches each

_results: dict[str, str | ModelError] = {}  # test results, by the model's class and config


def select_attention(model: Any, where: str) -> None:
    """Set the model's attention: `attention.NAME` if packing is correct, otherwise an ordinary one.

    Args:
        where: the model's path, for errors.

    Raises:
        ModelError: no attention reproduces the model's own forward.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in ("dtype", "rlaif")}
    key = f"{type(model).__name__} {json.dumps(config, sort_keys=True, default=str)}"
    if key not in _results:
        training = model.training
        try:
            _results[key] = _choose(model)
        except ModelError as error:
            _results[key] = error
        finally:
            model.train(training)
    found = _results[key]
    if isinstance(found, ModelError):
        raise ModelError(found.what, where=where, hint=found.hint)
    _set_attention(model, found)


def _choose(model: Any) -> str:
    """The name of the first attention that reproduces the model's own forward, the one for packing first."""
    batch = _batch(model)
    given = attention_name(model.config)
    with torch.no_grad(), _in_fp32(model), _short_windows(model):
        own = "eager" if _set_attention(model, "eager") else given  # the reference implementation of every model
        expected = _expected(model.eval(), batch)
        # A fused attention may leave out something that the eager one computes, so it is checked too.
        for name in dict.fromkeys((attention.register(), given, own)):
            reason = _mismatch(model, name, batch, expected)
            if reason is None:
                return name
    raise ModelError(f"this kind of model ({model.config.model_type}) cannot be trained: {reason}", hint=_HINT)


_HINT = "docs/models.md lists the kinds of models that can be trained"


@dataclass(frozen=True)
class _Expected:
    """The numbers that training must reproduce, and the tolerance."""

    numbers: Tensor
    tolerance: float

    def differ(self, found: Tensor) -> bool:
        """Whether any number is off by more than the tolerance, or NaN."""
        return not bool(((self.numbers - found).abs() <= self.tolerance).all())


def _expected(model: Any, batch: Packed) -> _Expected:
    """The outputs of the model's own forward.

    Raises:
        ModelError: the model does not take plain text, or is not causal.
    """
    kind = f"this kind of model ({model.config.model_type})"
    prompt = batch.layout.groups[0][0]
    rows = _rows(batch)
    other = torch.cat([rows[0, :prompt].flip(0), rows[0, prompt:]])
    try:
        numbers, seen = _reference_output(
            model, torch.cat([rows, other[None]]), [g[0] for g in batch.split_branches().layout.groups] + [prompt]
        )
    except Exception as error:  # layers with unexpected inputs may raise anything
        what = f"its forward does not accept plain text: {type(error).__name__}: {error}"
        raise ModelError(f"{kind} cannot be trained: {what}", hint=_HINT) from error
    change = float((numbers[0] - numbers[-1]).abs().max())
    found = _Expected(torch.cat(numbers[:-1]), min(_TOLERANCE, _NOISE + _SHARE * change))
    if not bool(torch.isfinite(seen).all()):
        raise ModelError("the model's own forward returns values that are not finite")
    # Two sequences with the same prefix: with small weights a dependence on later tokens is small, but above noise.
    noise = _NOISE * max(1.0, float(seen.abs().max()))
    if _Expected(seen[0, :prompt], noise).differ(seen[1, :prompt]):
        what = "reads text in both directions: its outputs depend on tokens that come later"
        raise ModelError(f"{kind} {what}", hint=_HINT)
    return found


def _mismatch(model: Any, name: str, batch: Packed, expected: _Expected) -> str | None:
    """Why training with the attention of this name would be wrong; None if it is correct."""
    if not _set_attention(model, name):
        return "its attention cannot be replaced"
    model.train()
    try:
        found = _training_output(model, batch)
        if not expected.differ(found):
            return None
        again = _training_output(model, batch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if _Expected(found, expected.tolerance).differ(again):
        return "it is random in training (a dropout that no setting disables)"
    kind = "rewards" if hasattr(model, "score") else "log-probs"
    return f"its {kind} in training differ from those of its own forward"


def _training_output(model: Any, batch: Packed) -> Tensor:
    """As in training: [4] rewards, or the log-probs of all response tokens."""
    if hasattr(model, "score"):
        return rewards(model, batch).flatten()
    return response_logprobs(model, batch, 1.0)[batch.response_mask]


def _reference_output(model: Any, rows: Tensor, prompts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Per row of [N, L], the same by the model's own forward; and its outputs at every token, [N, L, ...]."""
    if hasattr(model, "score"):
        seen = getattr(model, model.base_model_prefix)(input_ids=rows, use_cache=False)[0]
        return [model.forward(input_ids=row[None], use_cache=False).logits[0] for row in rows], seen
    logits = model.forward(input_ids=rows, use_cache=False).logits.float()
    of_next = logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
    return [row[prompt - 1 :] for row, prompt in zip(of_next, prompts, strict=True)], logits


def _batch(model: Any) -> Packed:
    """Two groups with two branches each, all sequences of equal length, without special tokens."""
    config = model.config.get_text_config()
    named = [value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index"))]
    special = {token for value in named for token in (value if isinstance(value, list) else [value])}
    vocabulary = [token for token in range(min(config.vocab_size, 10_000)) if token not in special]
    draw = random.Random(0)
    groups = [
        Group(draw.choices(vocabulary, k=prompt), [draw.choices(vocabulary, k=response) for _ in range(2)])
        for prompt, response in _SHAPES
    ]
    return pack(groups).to(model.device)


def _rows(batch: Packed) -> Tensor:
    """[4, _LENGTH]: every branch with its prompt."""
    return batch.split_branches().input_ids.view(-1, _LENGTH)


# ------------------------------------------------------------------------------------------------ test settings


def _set_attention(model: Any, name: str) -> bool:
    """Set the model's attention; returns whether that worked."""
    if attention_name(model.config) == name:
        return True
    if not can_set_attention(model):
        return False
    with contextlib.suppress(ValueError):
        model.set_attn_implementation(name)
    return attention_name(model.config) == name


@contextlib.contextmanager
def _short_windows(model: Any) -> Iterator[None]:
    """Use a short window: with a checkpoint's own, a short test would not notice that attention ignores it."""
    changed = []
    for holder in [*model.modules(), *configs(model.config)]:
        for name in ("sliding_window", "attention_chunk_size"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > _WINDOW:
                changed.append((holder, name, value))
                setattr(holder, name, _WINDOW)
    try:
        yield
    finally:
        for holder, name, value in changed:
            setattr(holder, name, value)


def configs(config: Any) -> Iterator[Any]:
    """A config and its sub-configs, recursively."""
    yield config
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            yield from configs(part)


@contextlib.contextmanager
def _in_fp32(model: Any) -> Iterator[None]:
    """Compute in fp32 even if the model is in half precision, with only one layer's weights in fp32 at a time."""
    narrow: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def widen(key: int, tensors: list[Tensor]) -> None:
        halves = [t for t in tensors if t.is_floating_point() and t.dtype != torch.float32]
        narrow.setdefault(key, []).extend((t, t.data) for t in halves)
        for tensor in halves:
            tensor.data = tensor.data.float()

    def restore(key: int) -> None:
        for tensor, data in narrow.pop(key, []):
            tensor.data = data

    def of(module: Any) -> list[Tensor]:
        return [*module.parameters(), *module.buffers()]

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(tensor) for layer in layers for tensor in of(layer)}
    hooks = [
        hook
        for layer in layers
        for hook in (
            layer.register_forward_pre_hook(lambda module, _: widen(id(module), of(module))),
            layer.register_forward_hook(lambda module, *_: restore(id(module)), always_call=True),
        )
    ]
    try:
        widen(0, [tensor for tensor in of(model) if id(tensor) not in inside])
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for key in list(narrow):
            restore(key)
