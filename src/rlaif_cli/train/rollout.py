"""Rollouts: samples of the policy, from an engine whose weights are synced with the trainer's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.data.messages import Message
from rlaif_cli.engines import Completion, Engine, Request, Sampling, open_engine
from rlaif_cli.models.chat_template import ChatFormat
from rlaif_cli.train.nn.heads import load_policy
from rlaif_cli.train.nn.lora import Adapted
from rlaif_cli.train.nn.packing import Group
from rlaif_cli.train.nn.precision import frozen_dtype
from rlaif_cli.train.parallel.distributed import full_tensor, world_size
from rlaif_cli.train.runtime.checkpoint_names import checkpoint_names


@dataclass(frozen=True)
class Prompt:
    """A training prompt, as messages and as the policy's token ids, with the other fields of its row."""

    id: str
    messages: list[Message]
    token_ids: list[int]
    reference: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """A prompt and the responses sampled for it."""

    prompt: Prompt
    completions: list[Completion]

    @property
    def group(self) -> Group:
        return Group(self.prompt.token_ids, [c.token_ids for c in self.completions])


class RolloutEngine:
    """Samples from the current policy.

    vLLM holds a copy of the weights, which `sync` replaces. So does the transformers engine if the trainer computes in
    bf16 or shards its weights; otherwise it samples from the trainer's own model, which needs no sync.

    Args:
        policy: the trainer's model.
        path: the checkpoint that training started from (for its tokenizer and config).
    """

    def __init__(self, config: PPOConfig, policy: Any, path: Path, longest_prompt: int) -> None:
        self._policy = policy
        self._copy: Any = None
        self._sampling = Sampling(n=config.n, temperature=config.temperature, max_tokens=config.max_tokens)
        # "processed" log-probs are those of the sampled distribution, after the temperature.
        options: dict[str, Any] = {"logprobs": "processed", "max_length": longest_prompt + config.max_tokens}
        options["chat"] = ChatFormat(*config.chat_format)
        if config.engine == "vllm":
            # An fp32 trainer needs an fp32 engine, also if it is fp32 only for lack of bf16: "auto" would use the
            # checkpoint's dtype or bf16.
            dtype = "float32" if frozen_dtype(config.precision) == torch.float32 else "auto"
            options |= {"dtype": dtype, "seed": config.seed, "memory": config.engine_memory, "syncable": True}
            self.engine: Engine = open_engine("vllm", path, **options)
        else:
            batch_size = config.prompts_per_step * config.n
            module = policy.shared if isinstance(policy, Adapted) else policy
            copy_dtype = frozen_dtype(config.precision)
            if not config.lora_rank and (world_size() > 1 or copy_dtype != torch.float32):
                self._copy = module = load_policy(path, copy_dtype).requires_grad_(False)
            self.engine = open_engine("transformers", path, model=module, batch_size=batch_size, **options)

    def sync(self) -> None:
        """Copy the trainer's weights to the engine, unless it samples from the trainer's own model."""
        if isinstance(self._policy, Adapted):
            self._policy.activate()
        load_weights = getattr(self.engine, "load_weights", None)
        if load_weights is not None:
            load_weights(policy_weights(self._policy))
        if self._copy is not None:
            for mine, theirs in zip(self._copy.parameters(), self._policy.parameters(), strict=True):
                mine.copy_(full_tensor(theirs.detach()))

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Rollout]:
        """`n` responses to every prompt, in the order of `prompts`."""
        requests = [
            Request(index, prompt.token_ids, seed=seed)
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        done = dict(self.engine.generate(requests, self._sampling))
        return [Rollout(prompt, done[index]) for index, prompt in enumerate(prompts)]

    def close(self) -> None:
        self.engine.close()


def policy_weights(policy: Any) -> Iterator[tuple[str, Any]]:
    """The policy's weights under the checkpoint's names, including the output layer even if it is tied.

    If the output layer is not sent, vLLM silently keeps the old one: rollouts would come from a model with a new body
    and an old head (seen with vLLM 0.32).
    """
    adapted = isinstance(policy, Adapted)
    module = policy.shared if adapted else policy
    own = itertools.chain(policy.weights() if adapted else policy.named_parameters(), _saved_buffers(module))
    names = set()
    for name, weight in checkpoint_names(module, ((name, full_tensor(weight.detach())) for name, weight in own)):
        names.add(name)
        yield name, weight
    output = module.get_output_embeddings()
    head = next((name for name, part in module.named_modules() if part is output), None)
    if head is not None and f"{head}.weight" not in names:
        yield f"{head}.weight", full_tensor(output.weight.detach())


def _saved_buffers(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The persistent buffers, which a checkpoint holds besides parameters (the biases of some routers, for example)."""
    saved = module.state_dict().keys()
    return ((name, buffer) for name, buffer in module.named_buffers(remove_duplicate=False) if name in saved)
