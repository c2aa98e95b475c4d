"""How a model is trained: on packed sequences, one sequence at a time, or not at all. Found by trying it.

A few random tokens go through the model as training would send them and through its own plain forward. Layers that
mix neighbouring tokens in another way than attention (convolutions, state spaces, linear attention), and models that do
not hand the layout on to their attention, do not pack; what is not causal, or random in training, is refused.
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
from rlaif_cli.train.nn import attention
from rlaif_cli.train.nn.forward import response_logprobs, rewards
from rlaif_cli.train.nn.packing import Group, Packed, pack

# Nats, or units of a reward. In fp32 a right model differs by 1e-6 to 1e-3; the smallest fault seen was 0.07. Where
# even another prompt changes little (small random weights), a fault does too: then it is a share of that change.
_TOLERANCE, _SHARE, _NOISE = 1e-2, 0.02, 2e-5
_WINDOW = 4  # tokens, in place of a model's own windows: each must matter to sequences that are this short
_LENGTH = 9  # of every sequence of the test
_SHAPES = ((6, 3), (2, 7))  # (prompt, response) of two groups with two branches each

_results: dict[str, str | ModelError] = {}  # what was found out, by the model's class and config


def select_attention(model: Any, where: str) -> None:
    """Choose the model's attention: `attention.NAME` where packed sequences are right, else a plain one.

    Raises:
        ModelError: neither way gives what the model's own forward does.
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
    """The name of the attention that the model is trained with."""
    batch = _batch(model)
    given = str(model.config._attn_implementation)
    with torch.no_grad(), _in_fp32(model), _short_windows(model):
        own = "eager" if _set_attention(model, "eager") else given  # the one that every model's authors wrote
        expected = _expected(model.eval(), batch)
        # A fused attention may leave something out that the authors' own computes, and is then not right either.
        for name in dict.fromkeys((attention.register(), given, own)):
            reason = _mismatch(model, name, batch, expected)
            if reason is None:
                return name
    raise ModelError(f"this kind of model ({model.config.model_type}) cannot be trained: {reason}", hint=_HINT)


_HINT = "docs/models.md lists the kinds of models that can be trained"


@dataclass(frozen=True)
class _Expected:
    """What training has to compute, and how far it may be from it."""

    numbers: Tensor
    tolerance: float

    def differ(self, found: Tensor) -> bool:
        """Also where one is not a number."""
        return not bool(((self.numbers - found).abs() <= self.tolerance).all())


def _expected(model: Any, batch: Packed) -> _Expected:
    """By the model's own forward.

    Raises:
        ModelError: it has none for plain text, or tokens see what comes after them.
    """
    kind = f"this kind of model ({model.config.model_type})"
    prompt = batch.layout.groups[0][0]
    rows = _rows(batch)
    other = torch.cat([rows[0, :prompt].flip(0), rows[0, prompt:]])
    try:
        numbers, seen = _reference_output(
            model, torch.cat([rows, other[None]]), [g[0] for g in batch.split_branches().layout.groups] + [prompt]
        )
    except Exception as error:  # whatever layers raise that are given what they do not know
        what = f"its own forward takes no plain text: {type(error).__name__}: {error}"
        raise ModelError(f"{kind} cannot be trained: {what}", hint=_HINT) from error
    change = float((numbers[0] - numbers[-1]).abs().max())
    found = _Expected(torch.cat(numbers[:-1]), min(_TOLERANCE, _NOISE + _SHARE * change))
    if not bool(torch.isfinite(seen).all()):
        raise ModelError("the model's own forward gives what is not a number")
    # Two sequences that begin alike: with small weights what comes later shows little, but always above the noise.
    noise = _NOISE * max(1.0, float(seen.abs().max()))
    if _Expected(seen[0, :prompt], noise).differ(seen[1, :prompt]):
        what = "reads text in both directions: its outputs depend on tokens that come later"
        raise ModelError(f"{kind} {what}", hint=_HINT)
    return found


def _mismatch(model: Any, name: str, batch: Packed, expected: _Expected) -> str | None:
    """Why the model is not trained right with the attention of this name; None: it is."""
    if not _set_attention(model, name):
        return "it does not take another attention"
    model.train()
    try:
        found = _training_output(model, batch)
        if not expected.differ(found):
            return None
        again = _training_output(model, batch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if _Expected(found, expected.tolerance).differ(again):
        return "it is random in training (a dropout that no setting turns off)"
    kind = "rewards" if hasattr(model, "score") else "log-probs"
    return f"the {kind} that training would see are not those of its own forward"


def _training_output(model: Any, batch: Packed) -> Tensor:
    """As training computes it: [4] rewards, or the log-probs of all responses one after the other."""
    if hasattr(model, "score"):
        return rewards(model, batch).flatten()
    return response_logprobs(model, batch, 1.0)[batch.response_mask]


def _reference_output(model: Any, rows: Tensor, prompts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """The same of each of the rows [N, L] by the model's own forward; and what that computes at every token."""
    if hasattr(model, "score"):
        seen = getattr(model, model.base_model_prefix)(input_ids=rows, use_cache=False)[0]
        return [model.forward(input_ids=row[None], use_cache=False).logits[0] for row in rows], seen
    logits = model.forward(input_ids=rows, use_cache=False).logits.float()
    of_next = logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
    return [row[prompt - 1 :] for row, prompt in zip(of_next, prompts, strict=True)], logits


def _batch(model: Any) -> Packed:
    """Two groups with two branches each, all sequences equally long; no token that a config gives a meaning."""
    config = model.config.get_text_config()
    named = [value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index"))]
    meant = {token for value in named for token in (value if isinstance(value, list) else [value])}
    vocabulary = [token for token in range(min(config.vocab_size, 10_000)) if token not in meant]
    draw = random.Random(0)
    groups = [
        Group(draw.choices(vocabulary, k=prompt), [draw.choices(vocabulary, k=response) for _ in range(2)])
        for prompt, response in _SHAPES
    ]
    return pack(groups).to(model.device)


def _rows(batch: Packed) -> Tensor:
    """[4, _LENGTH]: every branch with its prompt."""
    return batch.split_branches().input_ids.view(-1, _LENGTH)


# ------------------------------------------------------------------------------------------------ for the test alone


def _set_attention(model: Any, name: str) -> bool:
    """Whether the model has it now."""
    if model.config._attn_implementation == name:
        return True
    if not model._can_set_attn_implementation():
        return False
    with contextlib.suppress(ValueError):
        model.set_attn_implementation(name)
    return bool(model.config._attn_implementation == name)


@contextlib.contextmanager
def _short_windows(model: Any) -> Iterator[None]:
    """A short window: with one as long as a checkpoint's, a short test would not notice that attention ignores it."""
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
    """A config and those inside it."""
    yield config
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            yield from configs(part)


@contextlib.contextmanager
def _in_fp32(model: Any) -> Iterator[None]:
    """A model in half precision computes in fp32, with one layer's weights in fp32 at a time."""
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
