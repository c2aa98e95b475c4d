"""How a model is run, and the settings of the stages that sample from one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from rlaif_cli.config.base import ENGINE, FROM, ORDERED, OUTPUT, Addresses, InputConfig, setting

EngineName = Literal["vllm", "transformers", "fake"]  # what can run a policy


AnyEngineName = Literal["vllm", "transformers", "openai", "ray", "fake"]  # what can run a data stage


Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class EngineConfig(InputConfig, section=ENGINE):
    """How a model is run."""

    engine: AnyEngineName | None = setting(
        None,
        "vllm, transformers, openai (a server), ray (vLLM on a cluster) or fake. Default: vllm; fake for the model "
        "'fake'.",
    )
    base_url: Addresses = setting(
        (),
        "openai: the server, http://host:port/v1; several times: a fleet of them. The key is in OPENAI_API_KEY.",
        output=False,
    )
    concurrency: int = setting(16, "openai: requests under way at the same time, of each server.", ge=1, output=False)
    retries: int = setting(
        5, "openai: how often a request is tried again, waiting longer each time.", ge=0, output=False
    )
    timeout: float = setting(120.0, "openai: seconds that one try may take.", gt=0, output=False)
    price_in: float | None = setting(
        None, "openai: price of a million tokens in, for the manifest.", ge=0, output=False
    )
    price_out: float | None = setting(None, "openai: price of a million tokens out.", ge=0, output=False)
    dtype: Dtype = setting(
        "auto",
        "auto, bfloat16, float16 or float32. auto: the checkpoint's; float32 on a CPU without bf16 instructions.",
    )
    max_length: int | None = setting(
        None, "Prompt and response together, tokens. Default: the model's own limit.", ge=8
    )
    engine_memory: float | None = setting(
        None, "vLLM's KV cache: GiB on a CPU (2), share of the memory on a GPU (0.9).", gt=0, output=False
    )
    tensor_parallel_size: int = setting(1, "GPUs that share one copy of the model.", ge=1, output=False)
    batch_size: int = setting(32, "Sequences in one batch of the transformers engine.", ge=1, output=False)
    ray_address: str | None = setting(
        None, "ray: the cluster, HOST:6379. Default: RAY_ADDRESS, else one of this machine alone.", output=False
    )
    replicas: int | None = setting(
        None,
        "ray: copies of the model, each in its own process. Default: what there is room for.",
        ge=1,
        output=False,
    )
    gpus_per_replica: float | None = setting(
        None, "ray: GPUs of each copy. Default: --tensor-parallel-size where there are GPUs.", ge=0, output=False
    )
    replica_batch: int = setting(
        256, "ray: requests that a copy gets at once; one that is lost costs two such batches.", ge=1, output=False
    )

    @model_validator(mode="after")
    def _cluster_options(self) -> EngineConfig:
        for name in ("ray_address", "replicas", "gpus_per_replica", "replica_batch"):
            if self.engine != "ray" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"--{name.replace('_', '-')} needs --engine ray")
        return self

    @model_validator(mode="after")
    def _server_options(self) -> EngineConfig:
        if self.base_url and self.engine != "openai":
            raise ValueError("--base-url needs --engine openai")
        if self.engine == "openai" and self.max_length is not None:
            raise ValueError("--max-length needs the model's tokenizer, which --engine openai does not have")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("--price-in and --price-out go together")
        return self


class GenerateConfig(EngineConfig):
    """Sample candidate responses for every prompt."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif generate prompts.jsonl --model smollm2-135m -n 4 -o candidates.jsonl",
        "rlaif generate hf:org/prompts:train --model org/model --max-tokens 512 | gzip > candidates.jsonl.gz",
    )
    prompts: str = setting(help=f"JSONL of prompts: {FROM}.", argument=True)
    output: str = setting("-", "Where the candidates go; - is stdout.", short="-o", section=OUTPUT, output=False)
    model: str = setting(help="A built-in model, a folder, a .gguf file or a hub name.")
    n: int = setting(4, "Responses a prompt.", short="-n", ge=1)
    temperature: float = setting(1.0, "0 is greedy.", ge=0)
    top_p: float = setting(1.0, "Sample from the smallest set of tokens with this mass.", gt=0, le=1)
    max_tokens: int = setting(256, "The longest response, tokens.", ge=1)
    system: str | None = setting(None, "A system prompt for every row.")
    stop: tuple[str, ...] = setting((), "A text that ends a response; may be given several times.")
    ordered: bool = setting(False, ORDERED, section=OUTPUT)

    @model_validator(mode="after")
    def _greedy_is_one(self) -> GenerateConfig:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"--temperature 0 gives {self.n} equal responses: use -n 1, or a temperature above 0")
        return self


class ReviseConfig(EngineConfig):
    """Criticise and rewrite responses by a constitution. Constitutional AI's first phase."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif revise prompts.jsonl --model org/model --constitution harmlessness --rounds 2 -o revisions.jsonl",
    )
    prompts: str = setting(help=f"JSONL of prompts: {FROM}.", argument=True)
    output: str = setting("-", "Where the revisions go; - is stdout.", short="-o", section=OUTPUT, output=False)
    model: str = setting(help="A built-in model, a folder, a .gguf file or a hub name.")
    constitution: str = setting(help="A shipped constitution's name, or a YAML file.")
    principles: tuple[str, ...] = setting(("sample",), "The ids to draw from; 'sample' draws from all.")
    rounds: int = setting(4, "Critiques and revisions a prompt; each draws a principle.", ge=1)
    temperature: float = setting(1.0, "0 is greedy.", ge=0)
    top_p: float = setting(1.0, "Sample from the smallest set of tokens with this mass.", gt=0, le=1)
    max_tokens: int = setting(256, "The longest response, critique and revision, tokens.", ge=1)
    system: str | None = setting(None, "A system prompt for the first response.")
