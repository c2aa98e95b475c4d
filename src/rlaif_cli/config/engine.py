"""Engine settings, and those of the stages that sample from a model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from rlaif_cli.config.base import ENGINE, FROM, ORDERED, OUTPUT, Addresses, setting
from rlaif_cli.config.chat import ChatConfig
from rlaif_cli.config.naming import SettingError, option

EngineName = Literal["vllm", "transformers", "fake"]  # what can run a policy


AnyEngineName = Literal["vllm", "transformers", "openai", "decisions", "ray", "fake"]  # what can run a data stage


SERVERS = ("openai", "decisions")  # the model runs elsewhere, behind an HTTP API


_NOT_FOR_BATCHES = {"ordered": "failed requests are answered in a later batch"}


Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class EngineConfig(ChatConfig, section=ENGINE):
    """How a model is run."""

    engine: AnyEngineName | None = setting(
        None,
        "What runs the model: vllm, transformers, openai (a server), decisions (a judge behind a decision endpoint), "
        "ray (vLLM on a cluster) or fake. Default: vllm, or fake for the model 'fake'.",
    )
    base_url: Addresses = setting(
        (),
        "openai, decisions: the server, http://host:port/v1. Repeat to use several servers. The key is read from "
        "OPENAI_API_KEY.",
        output=False,
    )
    concurrency: int = setting(16, "openai, decisions: concurrent requests per server.", ge=1, output=False)
    retries: int = setting(5, "openai, decisions: retries per request, with exponential backoff.", ge=0, output=False)
    timeout: float = setting(120.0, "openai, decisions: timeout of a request in seconds.", gt=0, output=False)
    price_in: float | None = setting(
        None,
        "openai, decisions: price per million input tokens, to record the cost in the manifest.",
        ge=0,
        output=False,
    )
    price_out: float | None = setting(None, "openai, decisions: price per million output tokens.", ge=0, output=False)
    max_cost: float | None = setting(
        None,
        "openai: stop before this output has cost more USD than this, over all runs; a rerun with a higher value "
        "resumes. Needs the prices, from --price-in and --price-out or [prices] in rlaif.toml.",
        gt=0,
        output=False,
    )
    batch: bool = setting(
        False,
        "openai: send requests through the server's Batch API. The command submits them and ends with exit code 3; "
        "rerun it to collect the answers.",
        output=False,
    )
    batch_wait: float = setting(
        0.0, "With --batch: seconds to wait for each round of batches before the command ends.", ge=0, output=False
    )
    batch_requests: int = setting(
        50_000, "With --batch: requests per batch at most; a batch has at most 100 MB.", ge=1, le=50_000, output=False
    )
    dtype: Dtype = setting(
        "auto",
        "Data type of the weights. auto: that of the checkpoint, or float32 on a CPU without bf16 instructions.",
    )
    max_length: int | None = setting(
        None, "Maximum tokens of prompt and response together. Default: the model's context length.", ge=8
    )
    engine_memory: float | None = setting(
        None,
        "Memory for vLLM: GiB of KV cache on a CPU (default 2), fraction of GPU memory on a GPU (default 0.9).",
        gt=0,
        output=False,
    )
    tensor_parallel_size: int = setting(1, "GPUs per copy of the model.", ge=1, output=False)
    batch_size: int = setting(32, "transformers: sequences per batch.", ge=1, output=False)
    ray_address: str | None = setting(
        None, "ray: address of the cluster, HOST:6379. Default: RAY_ADDRESS, or a local cluster.", output=False
    )
    replicas: int | None = setting(
        None,
        "ray: copies of the model, each in its own process. Default: as many as fit.",
        ge=1,
        output=False,
    )
    gpus_per_replica: float | None = setting(
        None, "ray: GPUs per copy. Default: --tensor-parallel-size if there are GPUs.", ge=0, output=False
    )
    replica_batch: int = setting(
        256,
        "ray: requests sent to a copy at a time; if a copy is lost, at most two such batches are recomputed.",
        ge=1,
        output=False,
    )

    @model_validator(mode="after")
    def _cluster_options(self) -> EngineConfig:
        for name in ("ray_address", "replicas", "gpus_per_replica", "replica_batch"):
            if self.engine != "ray" and getattr(self, name) != type(self).model_fields[name].default:
                raise SettingError(f"{option(name)} needs {option('engine')} ray")
        return self

    @model_validator(mode="after")
    def _server_options(self) -> EngineConfig:
        if self.base_url and self.engine not in SERVERS:
            raise SettingError(f"{option('base_url')} needs {option('engine')} openai or decisions")
        if self.engine in SERVERS and self.max_length is not None:
            raise SettingError(
                f"{option('max_length')} needs the model's tokenizer, which {option('engine')} {self.engine} does not "
                "have"
            )
        if (self.price_in is None) != (self.price_out is None):
            raise SettingError(f"{option('price_in')} and {option('price_out')} must be given together")
        return self

    @model_validator(mode="after")
    def _spending_options(self) -> EngineConfig:
        for name in ("batch_wait", "batch_requests"):
            if not self.batch and getattr(self, name) != type(self).model_fields[name].default:
                raise SettingError(f"{option(name)} needs {option('batch')}")
        for name in ("batch", "max_cost"):
            if not getattr(self, name):
                continue
            if self.engine != "openai":
                raise SettingError(f"{option(name)} needs {option('engine')} openai")
            if getattr(self, "output", "-") == "-":
                raise SettingError(f"{option(name)} needs an output file, so that a rerun can resume")
        if self.max_cost is not None and self.price_in is None:
            raise SettingError(
                f"{option('max_cost')} needs prices: {option('price_in')} and {option('price_out')}, or "
                '[prices."MODEL"] with in and out in rlaif.toml'
            )
        if self.batch and len(self.base_url) > 1:
            raise SettingError(f"{option('batch')} needs a single {option('base_url')}")
        for name, why in _NOT_FOR_BATCHES.items():
            if self.batch and getattr(self, name, None):
                raise SettingError(f"{option(name)} does not apply to {option('batch')}: {why}")
        return self


class WriterConfig(EngineConfig):
    """A stage whose model writes text."""

    @model_validator(mode="after")
    def _writes(self) -> WriterConfig:
        if self.engine == "decisions":
            raise SettingError(
                f"{option('engine')} decisions writes no text: it can only judge; use {option('engine')} openai"
            )
        return self


class GenerateConfig(WriterConfig):
    """Sample candidate responses for every prompt."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif generate prompts.jsonl --model smollm2-135m -n 4 -o candidates.jsonl",
        "rlaif generate hf:org/prompts:train --model org/model --max-tokens 512 | gzip > candidates.jsonl.gz",
    )
    prompts: str = setting(help=f"JSONL of prompts: {FROM}.", argument=True, records=True)
    output: str = setting("-", "Output file for the candidates; - is stdout.", short="-o", section=OUTPUT, output=False)
    model: str = setting(help="The model: a built-in name, a folder, a .gguf file or a hub name.")
    n: int = setting(4, "Responses per prompt.", short="-n", ge=1)
    temperature: float = setting(1.0, "Sampling temperature; 0 is greedy.", ge=0)
    top_p: float = setting(1.0, "Nucleus sampling: the smallest set of tokens with this total probability.", gt=0, le=1)
    max_tokens: int = setting(256, "Maximum tokens per response.", ge=1)
    system: str | None = setting(None, "System prompt for every row.")
    stop: tuple[str, ...] = setting((), "Stop sequence. Repeatable.")
    ordered: bool = setting(False, ORDERED, section=OUTPUT)

    @model_validator(mode="after")
    def _greedy_is_one(self) -> GenerateConfig:
        if self.temperature == 0 and self.n > 1:
            raise SettingError(
                f"{option('temperature')} 0 gives {self.n} identical responses: use {option('n')} 1 or a "
                "temperature above 0"
            )
        return self


class ReviseConfig(WriterConfig):
    """Critique and rewrite responses by a constitution. The first phase of Constitutional AI."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif revise prompts.jsonl --model org/model --constitution harmlessness --rounds 2 -o revisions.jsonl",
    )
    prompts: str = setting(help=f"JSONL of prompts: {FROM}.", argument=True, records=True)
    output: str = setting("-", "Output file for the revisions; - is stdout.", short="-o", section=OUTPUT, output=False)
    model: str = setting(help="The model: a built-in name, a folder, a .gguf file or a hub name.")
    constitution: str = setting(help="Name of a shipped constitution, or a YAML file.")
    principles: tuple[str, ...] = setting(("sample",), "Principle ids to draw from; 'sample' draws from all.")
    rounds: int = setting(4, "Rounds of critique and revision per prompt; each draws a principle.", ge=1)
    temperature: float = setting(1.0, "Sampling temperature; 0 is greedy.", ge=0)
    top_p: float = setting(1.0, "Nucleus sampling: the smallest set of tokens with this total probability.", gt=0, le=1)
    max_tokens: int = setting(256, "Maximum tokens per response, critique and revision.", ge=1)
    system: str | None = setting(None, "System prompt for the first response.")
