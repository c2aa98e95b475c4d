"""vLLM in this process, on a GPU or a CPU.

We drive the engine's step loop rather than call `LLM.generate`, so that requests are pulled and results yielded while
it runs. docs/engines.md has the properties of the CPU build that matter here.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlaif_cli.config.naming import option
from rlaif_cli.engines.base import Completion, Request, Sampling
from rlaif_cli.errors import EngineError, MissingDependency
from rlaif_cli.models.metadata import check_weights, context_length
from rlaif_cli.models.precision import engine_dtype
from rlaif_cli.models.tokenizer import ChatTokenizer

_MAX_RUNNING = 128  # sequences decoded together
_IN_FLIGHT = 2 * _MAX_RUNNING  # requests submitted at once: enough to keep the engine busy
_USERS_CACHE_SPACE = os.environ.get("VLLM_CPU_KVCACHE_SPACE")  # GiB, if the user has set it
_RESUME_HINT = "finished work is kept; rerun the same command to resume"
_BLOCK = 32  # tokens per KV-cache block; prefix caching shares whole blocks


class VllmEngine:
    """See `Engine`.

    Args:
        path: a checkpoint folder.
        dtype: "auto" (see `engine_dtype`), "bfloat16", "float16" or "float32".
        max_length: prompt and response together, tokens; None: the model's own limit.
        seed: of the engine, for requests without one.
        memory: GiB for the KV cache on a CPU; fraction of GPU memory on a GPU. None: 2 GiB, or 0.9.
        logprobs: "raw" (of the model) or "processed" (after the temperature), for sampled tokens.
        syncable: weights will be replaced by `load_weights`; unties the output layer, see there.
        tensor_parallel_size: GPUs that share the model.

    Raises:
        MissingDependency: vLLM is not installed.
        ModelError: the checkpoint lacks weights.
        EngineError: vLLM cannot start.
    """

    name = "vllm"

    def __init__(
        self,
        path: Path,
        *,
        dtype: str = "auto",
        max_length: int | None = None,
        seed: int = 0,
        memory: float | None = None,
        logprobs: str = "raw",
        syncable: bool = False,
        tensor_parallel_size: int = 1,
    ) -> None:
        self.tokenizer = ChatTokenizer(path)
        check_weights(path)  # vLLM would compute with uninitialised memory for missing ones
        self._on_cpu = on_cpu = _prepare_environment(memory)
        vllm = _import_vllm()
        # Final outputs only: otherwise every decoding step returns every growing text.
        self._sampling_params = functools.partial(
            vllm.SamplingParams, output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        )
        self._ids = itertools.count()
        options: dict[str, Any] = {}
        if on_cpu:
            # Compiling takes a minute, which short runs do not recover (measured: 65-97 s against 5 s).
            options["enforce_eager"] = True
            options["block_size"] = _BLOCK
            # Chunked prefill breaks per-request seeds on CPUs ("CPU Generator does not use offset"), so a step must
            # be able to take the longest prompt at once.
            options["enable_chunked_prefill"] = False
            options["max_num_batched_tokens"] = max(4096, max_length or context_length(path))
        elif memory is not None:
            options["gpu_memory_utilization"] = memory
        if syncable:
            options["hf_overrides"] = {"tie_word_embeddings": False}
        try:
            self._llm = vllm.LLM(
                model=str(path),
                load_format="safetensors",  # never a pickle
                trust_remote_code=False,
                dtype=engine_dtype(dtype) if on_cpu else dtype,
                max_model_len=max_length,
                seed=seed,
                max_num_seqs=_MAX_RUNNING,
                enable_prefix_caching=True,
                logprobs_mode=f"{logprobs}_logprobs",
                tensor_parallel_size=tensor_parallel_size,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **options,
            )
        except Exception as error:  # vLLM has no common base class
            raise EngineError(
                f"vLLM cannot start: {type(error).__name__}: {error}",
                where=str(path),
                hint=f"use less memory ({option('engine_memory')}), a shorter context ({option('max_length')}), "
                f"or {option('engine')} transformers",
            ) from error
        self._engine = self._llm.llm_engine
        self.max_length = int(self._llm.model_config.max_model_len)

    # ------------------------------------------------------------------------------------------ requests

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Any, list[Completion]]]:
        def params(request: Request) -> Any:
            return self._sampling_params(
                n=sampling.n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop) or None,
                stop_token_ids=list(self.tokenizer.eos_ids),
                seed=request.seed,
                logprobs=0,
                skip_special_tokens=True,
            )

        for request, output in self._drive(requests, params):
            if len(output.outputs) != sampling.n:
                raise EngineError(f"vLLM returned {len(output.outputs)} of {sampling.n} samples", hint=_RESUME_HINT)
            yield request.key, [self._completion(sample) for sample in output.outputs]

    def _completion(self, sample: Any) -> Completion:
        ids = list(sample.token_ids)
        logprobs = [position[token].logprob for position, token in zip(sample.logprobs, ids, strict=True)]
        # vLLM's own text can begin with the prompt's tail and lacks an incomplete last character; it is only needed if
        # a stop text was removed.
        text = sample.text if isinstance(sample.stop_reason, str) else self.tokenizer.decode(ids)
        return Completion(text, ids, logprobs, "length" if sample.finish_reason == "length" else "stop")

    def logprobs(self, requests: Iterable[Request]) -> Iterator[tuple[Any, list[float]]]:
        missed = []
        for request, output in self._drive(requests, self._logprob_params):
            # A cached prefix is not recomputed, so its positions have no log-probs. That is fine as long as the cache
            # ends before the continuation's first token is predicted.
            if request.choices or (output.num_cached_tokens or 0) < len(request.prompt):
                yield request.key, _requested_logprobs(request, output)
            else:
                missed.append(request)
        for request, output in self._drive(missed, functools.partial(self._logprob_params, reuse_prefix=False)):
            yield request.key, _requested_logprobs(request, output)

    def _logprob_params(self, request: Request, reuse_prefix: bool = True) -> Any:
        params = functools.partial(self._sampling_params, temperature=1.0, max_tokens=1, detokenize=False)
        if request.choices:
            return params(logprob_token_ids=list(request.choices))
        return params(prompt_logprobs=0, skip_reading_prefix_cache=not reuse_prefix)

    # ------------------------------------------------------------------------------------------ weights

    def load_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Replace the weights by a trainer's, with the checkpoint's names.

        If the output layer is tied to the embedding, `lm_head.weight` must be included: vLLM's reload would otherwise
        silently keep the old one (the engine is loaded untied for this).
        """
        if self._on_cpu:
            self._llm.collective_rpc(_discard_packed_experts)
        dtype = self._llm.model_config.dtype
        cast = ((name, weight.to(dtype)) for name, weight in weights)  # one at a time: no second copy of the model
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": cast})
        self._llm.reset_prefix_cache()

    def close(self) -> None:
        if getattr(self, "_llm", None) is None:
            return
        with _keep_torch_distributed():
            with contextlib.suppress(Exception):
                self._engine.engine_core.shutdown()
            del self._llm, self._engine
            gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()

    # ------------------------------------------------------------------------------------------ the loop

    def _drive(self, requests: Iterable[Request], params: Any) -> Iterator[tuple[Request, Any]]:
        """Keep the engine full from a stream of requests; yield (request, output) as they finish."""
        waiting = iter(requests)
        running: dict[str, Request] = {}
        try:
            while True:
                for request in itertools.islice(waiting, _IN_FLIGHT - len(running)):
                    name = str(next(self._ids))
                    tokens = [*request.prompt, *request.continuation]
                    self._engine.add_request(name, {"prompt_token_ids": tokens}, params(request))
                    running[name] = request
                if not running:
                    return
                if not self._engine.has_unfinished_requests():  # else this loop would never end
                    raise EngineError(f"vLLM lost {len(running)} requests", hint=_RESUME_HINT)
                for output in self._step():
                    if output.finished:
                        yield running.pop(output.request_id), output
        finally:
            if running and getattr(self, "_engine", None) is not None:
                self._engine.abort_request(list(running))

    def _step(self) -> list[Any]:
        try:
            outputs: list[Any] = self._engine.step()
        except Exception as error:
            raise EngineError(
                f"vLLM failed while running: {type(error).__name__}: {error}", hint=_RESUME_HINT
            ) from error
        return outputs


def _discard_packed_experts(worker: Any) -> None:
    """On a CPU, vLLM 0.32 packs the experts' weights for its kernel on the first load but not on a reload: it would
    read new weights as if they were packed. Without its kernel, a layer initialises itself as on the first load.
    """
    for module in worker.get_model().modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _requested_logprobs(request: Request, output: Any) -> list[float]:
    if request.choices:
        found = output.outputs[0].logprobs[0]
        return [found[token].logprob for token in request.choices]
    positions = output.prompt_logprobs[len(request.prompt) :]
    return [position[token].logprob for position, token in zip(positions, request.continuation, strict=True)]


def _prepare_environment(memory: float | None) -> bool:
    """Set environment variables of vLLM that the user has not set; returns whether it runs on a CPU.

    vLLM reads them once, at import, so they must be set before.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in-process, so that weights can be passed
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0" if os.environ["VLLM_LOGGING_LEVEL"] == "ERROR" else "1")
    on_cpu = not _has_gpu()
    if on_cpu:
        # Set for every engine of the process: an earlier engine's size must not apply to this one.
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(memory)) if memory else _USERS_CACHE_SPACE or "2"
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
        # By default the CPU build reserves one core: twice as slow on two cores.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    return on_cpu


@contextlib.contextmanager
def _keep_torch_distributed() -> Iterator[None]:
    """Keep the process group of distributed training, which vLLM's shutdown would destroy."""
    import torch.distributed as dist
    from vllm.distributed import parallel_state

    end = parallel_state.destroy_distributed_environment
    if dist.is_initialized() and dist.get_world_size() > 1:
        parallel_state.destroy_distributed_environment = lambda: None
    try:
        yield
    finally:
        parallel_state.destroy_distributed_environment = end


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _import_vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise MissingDependency(
            f"vLLM is not installed ({error})",
            hint=f"pip install 'rlaif[vllm]' on a GPU machine, 'rlaif[cpu]' on a CPU; or use {option('engine')} "
            "transformers",
        ) from error
    if (
        os.environ["VLLM_LOGGING_LEVEL"] == "ERROR"
    ):  # the variable alone leaves its warnings to Python's default handler
        logging.getLogger("vllm").setLevel(logging.ERROR)
        # Meant for vLLM's developers; no user can fix it.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    return vllm
