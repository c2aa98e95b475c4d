"""transformers in this process: for machines without vLLM; slower, with no further dependencies."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from rlaif_cli.config.naming import option
from rlaif_cli.engines.base import Completion, Request, Sampling
from rlaif_cli.engines.decoding import Decoder, recordable
from rlaif_cli.engines.trial import supports_left_padding
from rlaif_cli.errors import EngineError, is_out_of_memory
from rlaif_cli.models.load import exact_attention, load, load_config
from rlaif_cli.models.precision import engine_dtype
from rlaif_cli.models.tokenizer import ChatTokenizer

# Overrides defaults of a model's generation_config.json that no request asked for (Qwen2.5 has a repetition penalty):
# the log-probs of sampling and of scoring must be of the same, unmodified distribution.
_NO_DEFAULTS = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}


class TransformersEngine:
    """See `Engine`.

    Args:
        path: a checkpoint folder.
        dtype: "auto" (see `engine_dtype`), "bfloat16", "float16" or "float32".
        max_length: prompt and response together, tokens; None: the model's own limit.
        batch_size: sequences that go through the model together.
        seed: for requests without one.
        logprobs: "raw" (of the model) or "processed" (after the temperature), for sampled tokens.
        model: an already loaded model (a trainer's own policy), instead of loading `path`.
    """

    name = "transformers"

    def __init__(
        self,
        path: Path,
        *,
        dtype: str = "auto",
        max_length: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
        logprobs: str = "raw",
        model: Any = None,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self.tokenizer = ChatTokenizer(path)
        if model is None:
            config = load_config(path)
            attention = exact_attention(config)
            model = load(
                AutoModelForCausalLM, path, config=config, dtype=engine_dtype(dtype), attn_implementation=attention
            )
            model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
            self._model = model
            padded = supports_left_padding(model, self._left_padded, self.tokenizer.eos_ids)
        else:
            padded = True  # a trainer checks samples against its own log-probs in every step
        self._model = model
        self._decoder: Decoder | None = None
        self._recorded = model.device.type == "cuda" and recordable(model)
        self._batch_size = batch_size if padded else 1  # samples of one prompt need no padding
        self._seed = seed
        self._processed = logprobs == "processed"
        self.max_length = max_length or int(model.config.max_position_embeddings)

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Any, list[Completion]]]:
        for batch in self._batches(requests, self._batch_size // sampling.n):
            try:
                completions = self._sample(batch, sampling)
            except (RuntimeError, MemoryError) as error:
                _explain(error)
            yield from zip((r.key for r in batch), completions, strict=True)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float]]]:
        for batch in self._batches(requests, self._batch_size):
            yield from zip((r.key for r in batch), self._batch_logprobs(batch), strict=True)

    def _batch_logprobs(self, batch: list[Request]) -> list[list[float]]:
        """Log-probs of every request; the batch is halved if memory runs out, which gives the same numbers."""
        try:
            longest = max(len(r.continuation) for r in batch)
            # Left padding aligns the ends; the token before a continuation predicts its first token.
            logits = self._forward([[*r.prompt, *r.continuation] for r in batch], keep=longest + 1)
            return [self._request_logprobs(request, row) for request, row in zip(batch, logits, strict=True)]
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                _explain(error)
        self._decoder = None  # frees its cache
        half = len(batch) // 2  # outside `except`, where the exception would keep the tensors alive
        return self._batch_logprobs(batch[:half]) + self._batch_logprobs(batch[half:])

    def _request_logprobs(self, request: Request, row: Any) -> list[float]:
        logprobs = row[-len(request.continuation) - 1 :].float().log_softmax(-1)
        if request.choices:
            found: list[float] = logprobs[-1, list(request.choices)].tolist()
            return found
        wanted = self._torch.tensor(request.continuation, device=row.device)
        found = logprobs[:-1].gather(1, wanted[:, None])[:, 0].tolist()
        return found

    def close(self) -> None:
        self._model = self._decoder = None

    def _batches(self, requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
        waiting = iter(requests)
        while batch := list(itertools.islice(waiting, max(1, size))):
            yield batch

    def _forward(self, rows: list[list[int]], keep: int) -> Any:
        """Logits of the last `keep` positions, [rows, keep, vocabulary], left-padded, in the model's precision."""
        ids, mask = self._left_padded(rows)
        with self._torch.no_grad():
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
            ).logits
        return logits

    def _left_padded(self, rows: list[list[int]]) -> tuple[Any, Any]:
        torch, width = self._torch, max(map(len, rows))
        # The ids of padding do not matter: it is masked.
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self._model.device), mask.to(self._model.device)

    def _sample(self, batch: list[Request], sampling: Sampling) -> list[list[Completion]]:
        torch = self._torch
        ids, mask = self._left_padded([list(r.prompt) for r in batch for _ in range(sampling.n)])
        seeds = [self._seed if r.seed is None else r.seed for r in batch]
        draw = _Draw(sampling, seeds, self._model.device, keep=self._processed)
        decode = self._replayed if self._recorded else self._generated
        with torch.no_grad(), _evaluating(self._model):
            new, logprobs = decode(ids, mask, draw, sampling.max_tokens)
        done = [self._completion(row, lp, sampling) for row, lp in zip(new.tolist(), logprobs.tolist(), strict=True)]
        return [done[i : i + sampling.n] for i in range(0, len(done), sampling.n)]

    def _generated(self, ids: Any, mask: Any, draw: _Draw, max_tokens: int) -> tuple[Any, Any]:
        """Sample with transformers' own loop, for any model and machine: tokens and their log-probs, [rows, tokens]."""
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,  # greedy over the scores of `draw`, whose maximum is the sample
            logits_processor=[draw],
            max_new_tokens=max_tokens,
            eos_token_id=list(self.tokenizer.eos_ids),
            pad_token_id=self.tokenizer.eos_ids[0],
            **_NO_DEFAULTS,
        )
        return output[:, ids.shape[1] :], self._torch.stack(draw.logprobs, 1)

    def _replayed(self, ids: Any, mask: Any, draw: _Draw, max_tokens: int) -> tuple[Any, Any]:
        """The same with a `Decoder`."""
        torch, decoder = self._torch, self._decoder_for(len(ids), ids.shape[1] + max_tokens)
        ends = torch.tensor(self.tokenizer.eos_ids, device=ids.device)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        tokens: list[Any] = []
        logits = decoder.start(ids, mask)
        while True:
            token = draw.token(logits)
            tokens.append(token)
            ended |= torch.isin(token, ends)
            # Checking whether all have ended waits for the GPU, so do it rarely.
            if len(tokens) == max_tokens or (len(tokens) % 16 == 0 and bool(ended.all())):
                return torch.stack(tokens, 1), torch.stack(draw.logprobs, 1)
            logits = decoder.next(token)

    def _decoder_for(self, rows: int, length: int) -> Decoder:
        """The last decoder if it fits and is not much too long, to reuse its recorded graph."""
        needed = -(-length // 128) * 128
        if self._decoder is None or self._decoder.rows != rows or not needed <= self._decoder.length <= 2 * needed:
            self._decoder = Decoder(self._model, rows, needed)
        return self._decoder

    def _completion(self, ids: list[int], logprobs: list[float], sampling: Sampling) -> Completion:
        ends = [i for i, token in enumerate(ids) if token in self.tokenizer.eos_ids]
        length = ends[0] + 1 if ends else len(ids)
        ids, text, reason = ids[:length], self.tokenizer.decode(ids[:length]), "stop" if ends else "length"
        for stop in sampling.stop:
            if stop in text:
                text, reason = text.partition(stop)[0], "stop"
        return Completion(text, ids, logprobs[:length], reason)


class _Draw:
    """Samples with the Gumbel-max trick (arXiv 1611.01144) and one generator per request, so that samples do not depend
    on the rest of the batch.

    Args:
        keep: log-probs are of the distribution that is sampled from, not the model's own.

    Attributes:
        logprobs: of the sampled tokens, [rows] per step; the scores of other tokens are not kept.
    """

    def __init__(self, sampling: Sampling, seeds: list[int], device: Any, *, keep: bool) -> None:
        import torch
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self._torch = torch
        self._n, self._keep = sampling.n, keep
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._greedy = sampling.temperature == 0
        self._warpers: list[Any] = [] if self._greedy else [TemperatureLogitsWarper(float(sampling.temperature))]
        if not self._greedy and sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self.logprobs: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """For `generate`, which takes the token with the largest score: the sampled one."""
        chosen = self.token(scores)[:, None]
        return self._torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)

    def token(self, scores: Any) -> Any:
        """Sample the next token of each row, [rows], from logits [rows, vocabulary]."""
        warped = scores
        for warp in self._warpers:
            warped = warp(None, warped)
        token = (warped if self._greedy else warped + self._gumbel(warped)).argmax(-1)
        source = warped if self._keep else scores
        self.logprobs.append(source.gather(1, token[:, None])[:, 0] - source.logsumexp(-1))
        return token

    def _gumbel(self, scores: Any) -> Any:
        shape, place = (self._n, scores.shape[-1]), scores.device
        noise = [self._torch.empty(shape, device=place).exponential_(generator=g) for g in self._generators]
        return -self._torch.cat(noise).log()


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode: with gradient checkpointing active, a trainer's model would sample without its cache.

    Layers that were compiled for training are not recompiled for sampling.
    """
    import torch

    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            yield
    finally:
        model.train(training)


def _explain(error: Exception) -> NoReturn:
    if is_out_of_memory(error):
        raise EngineError(
            "out of memory", hint=f"use a smaller {option('batch_size')} or {option('max_length')}"
        ) from error
    raise error
