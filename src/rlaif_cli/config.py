"""What each stage can be told. One definition serves the command line, pipeline files, manifests and resume checks.

Unknown keys are errors. A field marked `output=False` does not decide what the output is (speed, verbosity), so a run
may be resumed with another value of it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from annotated_types import MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

EngineName = Literal["vllm", "transformers", "fake"]  # what can run a policy
AnyEngineName = Literal["vllm", "transformers", "openai", "ray", "fake"]  # what can run a data stage
Kind = Literal["prompts", "candidates", "preferences", "pairs", "demonstrations", "revisions"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Precision = Literal["auto", "bf16", "fp32"]
# Names, any number of them; one is written as plain text.
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda names: (names,) if isinstance(names, str) else names, json_schema_input_type=str | tuple[str, ...]
    ),
    PlainSerializer(lambda names: names[0] if len(names) == 1 else list(names)),
]
Judges = Annotated[Names, MinLen(1)]


def address_fault(text: str) -> str | None:
    """Why a text is no address of a server; None if it is one."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and text.isprintable()
    except ValueError:  # a port that is no number, brackets without an address of IPv6
        usable = False
    return None if usable and " " not in text else f"{text!r} is no address of a server: http://host:port/v1"


def _addresses(given: tuple[str, ...]) -> tuple[str, ...]:
    """An empty one (an unset variable of a shell) must not become the client's own default, somebody else's server."""
    for text in given:
        if fault := address_fault(text):
            raise ValueError(fault)
    return given


Addresses = Annotated[Names, AfterValidator(_addresses)]

# The fields that name Python functions, whose files are run as code.
FUNCTION_FIELDS = ("reward_function", "eval_function")


def function_place(spec: str) -> tuple[str, str]:
    """ "a/gold.py:tone" -> ("a/gold.py", "tone")"""
    file, _, name = spec.rpartition(":")
    return file, name


def _functions(specs: tuple[str, ...]) -> tuple[str, ...]:
    for spec in specs:
        file, name = function_place(spec)
        if not file.endswith(".py") or not name.isidentifier():
            raise ValueError(f"'{spec}' does not name a function: FILE.py:NAME")
    if twice := sorted({spec for spec in specs if specs.count(spec) > 1}):
        raise ValueError(f"'{twice[0]}' is there twice")
    return specs


Functions = Annotated[Names, AfterValidator(_functions)]
# Numbers, any number of them; one is written as it is.
Numbers = Annotated[
    tuple[float, ...],
    BeforeValidator(
        lambda given: given if isinstance(given, list | tuple) else (given,),
        json_schema_input_type=float | tuple[float, ...],
    ),
]


def function_names(option: str, specs: Sequence[str], others: Sequence[str] = ()) -> tuple[str, ...]:
    """What functions are called in results: NAME of FILE.py:NAME, with the file's name before it where two are alike.

    Args:
        others: names that stand beside them.

    Raises:
        ValueError: two would have one name all the same.
    """
    places = [function_place(spec) for spec in specs]
    plain = [*others, *(name for _, name in places)]
    found = [name if plain.count(name) == 1 else f"{Path(file).stem}.{name}" for file, name in places]
    if twice := [name for name in found if [*others, *found].count(name) > 1]:
        raise ValueError(f"{option}: two are named {twice[0]} in the results; rename a function or its file")
    return tuple(found)


# The fields that name files of records.
DATA_FIELDS = ("prompts", "candidates", "preferences", "records", "pairs", "a", "b", "baseline", "human")


def setting(
    default: Any = ...,
    help: str = "",
    *,
    argument: bool = False,
    short: str | None = None,
    flag: str | None = None,
    output: bool = True,
    **limits: Any,
) -> Any:
    """A field with its help text; `limits` are pydantic's (ge, le, gt, lt, min_length).

    Args:
        flag: the option's name where it is not the field's.
    """
    extra: dict[str, Any] = {"argument": argument, "output": output}
    extra |= {name: value for name, value in (("short", short), ("flag", flag)) if value}
    return Field(default, description=help, json_schema_extra=extra, **limits)


# What may stand where an input is asked for; see `inputs`.
HUMAN_PAIRS = "response pairs with human preferences (response_a, response_b, human_fraction_a; see docs/inputs.md)"
FROM = "a file, a 'pattern-*', a folder, - (stdin), hf:org/name:split, or an address (s3://…)"
ORDERED = "Rows in the order of the input; one that is ready waits for those before it."


def _texts(value: Any) -> list[str]:
    """What a setting may name: its text, or each of several."""
    return [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str) and each]


def _lies_in(text: str, folder: Path) -> bool:
    """Whether what a text names, itself or as a pattern, is there and in the folder."""
    if not os.path.isdir(folder):  # a name that is too long is no fault here, as it is for Path
        return False
    named = [text] if os.path.exists(text) else glob.glob(text)
    return any(folder.resolve() in Path(each).resolve().parents for each in named)


class StageConfig(BaseModel):
    examples: ClassVar[tuple[str, ...]] = ()  # for the help and the pages of commands

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    seed: int = setting(0, "Fixes everything that can be fixed.", ge=0, lt=2**31)
    overwrite: bool = setting(False, "Start anew, over an earlier output.", output=False)
    dry_run: bool = setting(False, "Check everything, print the plan, start nothing.", output=False)

    @model_validator(mode="after")
    def _keep_the_input(self) -> StageConfig:
        """No output may be one of the inputs, or a folder that holds one: it would be emptied before it is read."""
        from rlaif_cli import inputs  # `rlaif --help` needs the fields alone, and soon

        outputs = {name: getattr(self, name, None) for name in ("output", "fix", "held_out")}
        for where, output in outputs.items():
            if output in (None, "-"):
                continue
            if "://" in output:
                hint = "write here, then `rlaif data shard`, and upload the shards"
                raise ValueError(f"--{where.replace('_', '-')} '{output}': outputs are files of this machine; {hint}")
            if not Path(output).name:
                raise ValueError(f"--{where.replace('_', '-')} '{output}' names no file")
            written = {Path(output).resolve(), Path(output).with_suffix(".items.jsonl").resolve()}
            texts = (
                (name, function_place(text)[0] if name in FUNCTION_FIELDS else text)
                for name in type(self).model_fields
                for text in _texts(getattr(self, name))
            )
            for name, text in texts:
                replaced = Path(text).resolve() in written or _lies_in(text, Path(output))
                if name != where and (
                    replaced or (name in DATA_FIELDS and any(inputs.reads(text, path) for path in written))
                ):
                    raise ValueError(f"the output would replace an input: {text}")
        return self

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what the output is; a resumed run must have the same."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if (fields[name].json_schema_extra or {}).get("output", True)  # type: ignore[union-attr]
        }


class InputConfig(StageConfig):
    skip_invalid: bool = setting(
        False, "Go on without lines that cannot be used; they go to NAME.rejected.jsonl beside the output."
    )


class EngineConfig(InputConfig):
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
    output: str = setting("-", "Where the candidates go; - is stdout.", short="-o", output=False)
    model: str = setting(help="A built-in model, a folder, a .gguf file or a hub name.")
    n: int = setting(4, "Responses a prompt.", short="-n", ge=1)
    temperature: float = setting(1.0, "0 is greedy.", ge=0)
    top_p: float = setting(1.0, "Sample from the smallest set of tokens with this mass.", gt=0, le=1)
    max_tokens: int = setting(256, "The longest response, tokens.", ge=1)
    system: str | None = setting(None, "A system prompt for every row.")
    stop: tuple[str, ...] = setting((), "A text that ends a response; may be given several times.")
    ordered: bool = setting(False, ORDERED)

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
    output: str = setting("-", "Where the revisions go; - is stdout.", short="-o", output=False)
    model: str = setting(help="A built-in model, a folder, a .gguf file or a hub name.")
    constitution: str = setting(help="A shipped constitution's name, or a YAML file.")
    principles: tuple[str, ...] = setting(("sample",), "The ids to draw from; 'sample' draws from all.")
    rounds: int = setting(4, "Critiques and revisions a prompt; each draws a principle.", ge=1)
    temperature: float = setting(1.0, "0 is greedy.", ge=0)
    top_p: float = setting(1.0, "Sample from the smallest set of tokens with this mass.", gt=0, le=1)
    max_tokens: int = setting(256, "The longest response, critique and revision, tokens.", ge=1)
    system: str | None = setting(None, "A system prompt for the first response.")


class JudgeConfig(EngineConfig):
    """How a judge is asked."""

    judge: Judges = setting(
        help="The judge: a built-in model, a folder, a .gguf file or a hub name. Several times: a panel, averaged."
    )
    constitution: str = setting(help="A shipped constitution's name, or a YAML file.")
    method: Literal["pairwise", "score", "contrast"] = setting(
        "pairwise",
        "pairwise asks which is better, both orders; score asks for 1 to 10, one by one; contrast asks nothing and "
        "compares likelihoods. Which agrees with people: docs/judging.md.",
    )
    principles: tuple[str, ...] = setting(
        ("sample",), "'sample' draws one per comparison; 'all' averages over all; or ids, averaged."
    )
    min_mass: float = setting(
        0.1, "Pairwise and score: a row whose labels hold less probability than this is unscored.", ge=0, le=1
    )
    samples: int = setting(
        0, "Pairwise and score: sample this many answers and count them (judges that tell no log-probs).", ge=0
    )
    contrast_scale: float = setting(
        20.0, "Contrast: k in sigmoid(k (score_a - score_b)), scores in nats per token.", gt=0
    )

    @property
    def judge_name(self) -> str:
        return " + ".join(self.judge)

    @field_validator("judge")
    @classmethod
    def _each_once(cls, judge: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in judge if judge.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' is there twice: a panel is of different judges")
        return judge

    @model_validator(mode="after")
    def _of_this_method(self) -> JudgeConfig:
        if self.method == "contrast" and self.samples:
            raise ValueError("--samples is for judges that are asked, and --method contrast asks nothing")
        if self.method == "contrast" and self.engine == "openai":
            raise ValueError("--method contrast needs the log-probs of given texts, which --engine openai cannot tell")
        return self


class CompareConfig(JudgeConfig):
    """How a judge compares two responses."""

    shots: int = setting(0, "Pairwise: exemplars of the constitution shown before the question.", ge=0)
    cot: bool = setting(False, "Pairwise: the judge reasons in words first, then answers.")
    rationale_tokens: int = setting(512, "With --cot: the longest reasoning, tokens.", ge=1)
    truncate: Literal["refuse", "head", "tail", "middle"] = setting(
        "refuse",
        "A pair that is too long for the judge: refuse it, or cut the head, tail or middle of its texts.",
    )
    clamp: tuple[float, float] | None = setting(
        None, "Pairwise: keep probabilities within these two bounds (0.4 0.6 for --cot, whose labels are too sure)."
    )

    @model_validator(mode="after")
    def _of_this_comparison(self) -> CompareConfig:
        if self.method != "pairwise":
            for name in ("shots", "cot", "clamp"):
                if getattr(self, name):
                    raise ValueError(f"--{name} belongs to --method pairwise")
        if self.engine == "openai" and self.truncate != "refuse":
            raise ValueError("--truncate needs the model's tokenizer, which --engine openai does not have")
        if self.clamp and not 0 <= self.clamp[0] <= self.clamp[1] <= 1:
            raise ValueError(f"--clamp needs two bounds from 0 to 1, found {self.clamp[0]:g} {self.clamp[1]:g}")
        if not self.cot and self.rationale_tokens != type(self).model_fields["rationale_tokens"].default:
            raise ValueError("--rationale-tokens belongs to --cot")
        return self


class LabelConfig(CompareConfig):
    """Turn candidates into soft preferences by an LLM judge."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif label candidates.jsonl --judge org/judge --constitution helpfulness -o preferences.jsonl",
        "rlaif label - --judge gpt --engine openai --base-url http://127.0.0.1:8000/v1 --constitution my.yaml < c",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    output: str = setting("-", "Where the preferences go; - is stdout.", short="-o", output=False)
    pairs: str = setting("chain", "Which responses are compared: all, chain (neighbours) or random:K.")
    ordered: bool = setting(False, ORDERED)


class AnnotateConfig(InputConfig):
    """Compare pairs by hand, in a page on this machine. Blind, shuffled, by keyboard, saved at once."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif annotate candidates.jsonl -o human.jsonl --annotator ann --labels preferences.jsonl",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    output: str = setting(help="Where the answers go: human pairs, as `rlaif eval alignment` reads them.", short="-o")
    annotator: str = setting(help="Who answers; several people may share one file.", min_length=1)
    pairs: str = setting("chain", "Which responses are compared: all, chain (neighbours) or random:K.")
    labels: str | None = setting(None, "A judge's preferences for the same pairs, compared at the end.", output=False)
    port: int = setting(0, "0: any that is free.", ge=0, lt=65536, output=False)
    no_browser: bool = setting(False, "Only print the address.", output=False)


class AuditConfig(InputConfig):
    """Check labels before anyone trains on them. Bias, mass, ties, length, repeats; ok, look or stop for each."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif audit preferences.jsonl",
        "rlaif audit preferences.jsonl --strict --json > audit.json",
    )
    preferences: str = setting(help=f"JSONL of preferences: {FROM}.", argument=True)
    skip_invalid: bool = setting(False, "Go on without lines that cannot be used; they are counted.")
    as_json: bool = setting(False, "The findings as one JSON object.", flag="--json", output=False)
    strict: bool = setting(False, "Exit code 3 when a check says stop.", output=False)


class DataConfig(InputConfig):
    """A file of records."""

    records: str = setting(help=f"JSONL of records: {FROM}.", argument=True)
    kind: Kind | None = setting(
        None,
        "prompts, candidates, preferences, pairs, demonstrations or revisions. Default: what the first row looks like.",
    )


class ParallelConfig(DataConfig):
    """Records whose files are read side by side."""

    num_workers: int | None = setting(
        None, "Processes that read the files of an input side by side. Default: one a core.", ge=1, output=False
    )


class ValidateConfig(ParallelConfig):
    """Every fault of a file, by line and field."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data validate rows.jsonl",
        "rlaif data validate rows.jsonl --kind prompts --fix fixed.jsonl",
    )
    fix: str | None = setting(
        None,
        "Write a copy here with everything fixed that can be fixed without a judgement; the rest goes beside it.",
    )


class StatsConfig(ParallelConfig):
    """What is in a file: rows, prompts, repeats, lengths, labels, sources."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif data stats preferences.jsonl",)
    as_json: bool = setting(False, "The numbers as one JSON object.", flag="--json", output=False)


class RewriteConfig(DataConfig):
    """Records into another file."""

    output: str = setting("-", "Where the rows go; - is stdout.", short="-o", output=False)


FormatName = Literal[
    "trl-preference",
    "trl-prompt-completion",
    "hh-rlhf",
    "ultrafeedback",
    "ultrafeedback-binarized",
    "openrlhf",
    "argilla",
    "argilla-records",
    "openai-chat",
]


class ConvertConfig(RewriteConfig):
    """Rows of other tools into ours, and ours into theirs."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data convert trl.jsonl --from trl-preference -o preferences.jsonl",
        "rlaif data convert preferences.jsonl --to openai-chat -o chats.jsonl",
    )
    from_format: FormatName | None = setting(None, "What the file is; default: our own records.", flag="--from")
    to_format: FormatName | None = setting(None, "What it is to become; default: our own records.", flag="--to")

    @model_validator(mode="after")
    def _changes_something(self) -> ConvertConfig:
        if self.from_format == self.to_format:
            raise ValueError("--from or --to must name another format than the other; without a name it is our own")
        if self.kind is not None:
            raise ValueError("--kind: the format says what its rows are")
        return self


class SplitConfig(RewriteConfig):
    """Two files with no prompt in common."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data split preferences.jsonl --fraction 0.1 --held-out test.jsonl -o train.jsonl",
    )
    held_out: str = setting(help="Where the held-out rows go.", output=False)
    fraction: float = setting(0.1, "The share of the prompts held out.", gt=0, lt=1)


class DedupeConfig(RewriteConfig, ParallelConfig):
    """Without rows that say again what an earlier one says."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif data dedupe prompts.jsonl --by prompt -o distinct.jsonl",)
    by: Literal["content", "prompt"] = setting(
        "content", "content: prompt and responses are equal; prompt: one row a prompt."
    )


class ShardConfig(StageConfig):
    """An input as many files, in a new folder. Lines are copied as they are, without a look at what they say."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif data shard preferences.jsonl --rows 100000 -o shards",
        "rlaif data shard 's3://bucket/part-*.jsonl' --megabytes 256 -o shards",
    )
    records: str = setting(help=f"JSONL of records: {FROM}.", argument=True)
    output: str = setting(
        help="The folder of the shards, NAME-00000-of-00012.jsonl.zst and so on.", short="-o", output=False
    )
    rows: int | None = setting(None, "Rows of a shard.", ge=1)
    megabytes: int | None = setting(None, "MB of text, before compression, from which on a shard is full.", ge=1)
    compress: Literal["zst", "gz", "none"] = setting("zst", "zst, gz or none.")

    @model_validator(mode="after")
    def _one_size(self) -> ShardConfig:
        if (self.rows is None) == (self.megabytes is None):
            raise ValueError("a shard needs a size: either --rows or --megabytes")
        return self


class TrainConfig(InputConfig):
    """What every trainer can be told."""

    model: str = setting(help="The checkpoint to start from: a built-in model, a folder, a .gguf file or a hub name.")
    output: str = setting(help="The folder of the trained model.", short="-o", output=False)
    lr: float = setting(1e-5, "The peak learning rate.", gt=0)
    warmup: float = setting(0.1, "The share of the steps in which the learning rate rises.", ge=0, lt=1)
    weight_decay: float = setting(0.0, "AdamW's.", ge=0)
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm.", gt=0)
    precision: Precision = setting(
        "auto", "bf16 autocast over fp32 weights, or fp32; auto: bf16 where the machine has it."
    )
    tokens_per_batch: int = setting(
        2048, "Tokens that go through the model at once; sets the memory, not the result.", ge=64, output=False
    )
    lora_rank: int = setting(
        0, "Train adapters of this rank on the frozen model, merged at the end; 0: all weights.", ge=0
    )
    lora_alpha: int | None = setting(None, "LoRA's products count alpha / rank times. Default: twice the rank.", gt=0)
    gradient_checkpointing: bool = setting(
        False, "Compute each layer again in the backward pass: less memory, a third more work.", output=False
    )
    compile: bool = setting(
        False,
        "Compile the layers of what is trained with torch.compile: faster on a GPU, after a minute or so.",
        output=False,
    )
    optimizer: Literal["adamw", "adamw-8bit"] = setting(
        "adamw", "adamw-8bit holds its state in a quarter of the memory (a GPU, and the bitsandbytes package)."
    )
    tracker: Names = setting(
        (),
        "tensorboard, trackio or wandb: what is logged goes there as well; may be given several times.",
        output=False,
    )
    num_processes: int = setting(
        1,
        "Processes on this machine that share the work and the weights, a GPU each where there are GPUs.",
        ge=1,
        output=False,
    )
    save_every: int = setting(
        0, "Steps between checkpoints to resume from; 0: one every ten minutes.", ge=0, output=False
    )

    @field_validator("tracker")
    @classmethod
    def _known_trackers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = ("tensorboard", "trackio", "wandb")
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"'{unknown[0]}' is none of {', '.join(known)}")
        return names

    @model_validator(mode="after")
    def _alpha_of_lora(self) -> TrainConfig:
        if self.lora_alpha is not None and not self.lora_rank:
            raise ValueError("--lora-alpha belongs to --lora-rank")
        return self


class EpochsConfig(TrainConfig):
    """Training that passes over fixed data."""

    epochs: int = setting(1, "Passes over the data.", ge=1)
    batch_size: int = setting(32, "Rows an optimizer step.", ge=1)
    eval_fraction: float = setting(0.1, "Share of the prompts held out.", ge=0, lt=1)
    eval_every: int = setting(0, "Steps between measurements of the held-out loss; 0: at the end of every epoch.", ge=0)
    patience: int = setting(
        0,
        "Stop after this many measurements without a new lowest held-out loss, and keep the weights of the lowest. "
        "One half of the held-out prompts chooses, the other is reported. 0: train to the end, keep the last.",
        ge=0,
    )

    @model_validator(mode="after")
    def _something_to_wait_for(self) -> EpochsConfig:
        if self.patience and not self.eval_fraction:
            raise ValueError("--patience watches the held-out loss, and --eval-fraction 0 holds nothing out")
        return self


class SftConfig(EpochsConfig):
    """Fine-tune a model on responses. On revisions, chosen responses, or any prompts with their responses."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif sft revisions.jsonl --model org/model -o sft",
        "rlaif sft chats.jsonl --model org/model --lora-rank 16 -o sft",
    )
    records: str = setting(
        help=f"JSONL of prompts with a response, completion, chosen or messages: {FROM}.", argument=True
    )
    max_length: int = setting(2048, "Prompt and response together, tokens; longer records are refused.", ge=8)
    all_rounds: bool = setting(False, "Of `rlaif revise`: learn the revisions of every round, not the last alone.")


class RewardModelConfig(EpochsConfig):
    """Train a reward model on soft preferences."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif train-rm preferences.jsonl --model org/model -o rm",
        "rlaif train-rm preferences.jsonl --model org/model --human people.jsonl --patience 3 --eval-every 20 -o rm",
    )
    preferences: str = setting(help=f"JSONL of preferences: {FROM}.", argument=True)
    max_length: int = setting(1024, "Prompt and response together, tokens; longer pairs are refused.", ge=8)
    margin: float = setting(0.0, "Asked of r_chosen - r_rejected beyond what the label asks.", ge=0)
    centering: float = setting(0.0, "eta in eta (r_chosen + r_rejected)^2.", ge=0)
    human: str | None = setting(
        None, "JSONL of pairs that people judged, to be measured by at the end (without the prompts trained on)."
    )
    hard_labels: bool = setting(False, "Round p_chosen to 0 or 1 (to compare with; soft is better). Ties stay 0.5.")
    ties: Literal["keep", "drop"] = setting(
        "keep", "Pairs with p_chosen of exactly 0.5: keep trains them towards equal rewards; drop leaves them out."
    )


class ScorersConfig(InputConfig):
    """What scores single responses, and what each of several counts."""

    reward_model: Names = setting((), "A reward model's folder. Several times: the mean of their normalised rewards.")
    reward_function: Functions = setting(
        (),
        "FILE.py:NAME, a Python function that scores responses; the file is run as code. May be given several times, "
        "and beside another source: the weighted sum counts. See docs/ppo.md.",
    )
    reward_weights: Numbers = setting(
        (),
        "The weight of each source, one option each: the reward model's (or judge's) first, then the functions' in "
        "order. Default: all 1.",
    )

    @property
    def other_source(self) -> str | None:
        """What scores beside functions, by its short name."""
        return "model" if self.reward_model else None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of all that scores, in the order of the weights; a function's has its file's where two are alike.

        Raises:
            ValueError: two functions would have one name.
        """
        first = (self.other_source,) if self.other_source else ()
        return (*first, *function_names("--reward-function", self.reward_function, first))

    @property
    def weights(self) -> tuple[float, ...]:
        """Of `sources`."""
        return self.reward_weights or (1.0,) * len(self.sources)

    @model_validator(mode="after")
    def _a_weight_each(self) -> ScorersConfig:
        names, given = self.sources, self.reward_weights
        if given and len(given) != len(names):
            order = ", ".join(names) or "none"
            raise ValueError(f"--reward-weights: {len(given)} for {len(names)} sources, in this order: {order}")
        if 0 in given:
            measured = "to measure without training on it, use --eval-function or `rlaif eval reward`"
            raise ValueError(f"--reward-weights: the weight of {names[given.index(0)]} is 0; {measured}")
        return self


class RewardSourceConfig(ScorersConfig):
    """What scores single responses: a reward model or a judge directly, and functions that the user wrote."""

    judge: str | None = setting(None, "Instead of a reward model: a judge (needs --constitution).")
    constitution: str | None = setting(None, "For --judge: a shipped constitution's name, or a YAML file.")
    principles: tuple[str, ...] = setting(("all",), "For --judge: 'all' averages over all principles; or ids.")
    method: Literal["contrast", "score"] = setting(
        "contrast", "For --judge: contrast compares likelihoods; score asks for 1 to 10 and takes the mean, as -1 to 1."
    )
    contrast_scale: float = setting(20.0, "For --judge: the reward is this times the contrast score.", gt=0)
    judge_engine: AnyEngineName | None = setting(
        None, "For --judge: vllm, transformers, openai (a server) or fake. Default: --engine."
    )
    base_url: Addresses = setting(
        (),
        "For --judge-engine openai: the server; several times: a fleet of them. The key is in OPENAI_API_KEY.",
        output=False,
    )
    concurrency: int = setting(
        16, "For --judge-engine openai: requests under way at the same time, of each server.", ge=1, output=False
    )
    engine_memory: float | None = setting(
        None, "vLLM's KV cache: GiB on a CPU (2), share of the memory on a GPU (0.9).", gt=0, output=False
    )

    @model_validator(mode="after")
    def _one_source(self) -> RewardSourceConfig:
        if self.reward_model and self.judge is not None:
            raise ValueError("--reward-model and --judge: only one of them can be given")
        if not self.sources:
            raise ValueError("a source of rewards is needed: --reward-model, --judge or --reward-function")
        if self.judge is not None and self.constitution is None:
            raise ValueError("--judge needs --constitution")
        if self.base_url and self.judge_engine != "openai":
            raise ValueError("--base-url needs --judge-engine openai")
        if self.judge_engine == "openai" and self.method == "contrast":
            raise ValueError("--judge-engine openai needs --method score: a server returns no log-probs of texts")
        if self.judge is None:
            for name in ("constitution", "principles", "method", "contrast_scale", "judge_engine"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"--{name.replace('_', '-')} belongs to --judge, and there is none")
        return self

    @property
    def other_source(self) -> str | None:
        return "judge" if self.judge is not None else super().other_source

    @property
    def reward_judge(self) -> JudgeConfig:
        """How `judge` is asked; by the stage's own `engine` where it has none of its own."""
        own: AnyEngineName | None = getattr(self, "engine", None)
        return JudgeConfig(
            judge=(self.judge or "",),
            constitution=self.constitution or "",
            method=self.method,
            principles=self.principles,
            contrast_scale=self.contrast_scale,
            engine=self.judge_engine or (None if "fake" in (self.judge, own) else own),
            base_url=self.base_url,
            concurrency=self.concurrency,
            engine_memory=self.engine_memory,
            seed=self.seed,
        )


class PPOConfig(TrainConfig, RewardSourceConfig):
    """Tune a policy by PPO. Against a reward model, a judge or reward functions of your own."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif ppo prompts.jsonl --model org/model --reward-model rm --steps 200 -o policy",
        "rlaif ppo prompts.jsonl --model org/model --judge org/judge --constitution helpfulness -o policy",
        "rlaif ppo prompts.jsonl --model org/model --reward-model rm --reward-function checks.py:exact "
        "--reward-weights 1 --reward-weights 0.5 -o policy",
    )
    prompts: str = setting(help=f"JSONL of prompts: {FROM}.", argument=True)
    engine: EngineName = setting("vllm", "What samples the rollouts, and runs a judge: vllm, transformers or fake.")
    system: str | None = setting(None, "A system prompt for every prompt.")
    steps: int = setting(100, "Rollout and update rounds.", ge=1)
    prompts_per_step: int = setting(32, "Prompts a step.", ge=1)
    n: int = setting(4, "Responses a prompt.", short="-n", ge=1)
    max_tokens: int = setting(256, "The longest response, tokens.", ge=1)
    temperature: float = setting(1.0, "Of the rollouts; log-probs are divided by it.", gt=0)
    top_p: float = setting(1.0, "Must be 1: PPO on truncated samples is biased.")
    epochs: int = setting(1, "Passes over each rollout.", ge=1)
    minibatches: int = setting(1, "Optimizer steps a pass over the rollout.", ge=1)
    advantage: Literal["gae", "rloo", "grpo", "reinforce"] = setting(
        "gae",
        "gae learns a value model; rloo and grpo compare the n responses of a prompt (n >= 2), reinforce those of the "
        "whole step: half the work.",
    )
    value_lr: float | None = setting(None, "The value model's learning rate; default: the policy's.", gt=0)
    kl_coef: float = setting(0.05, "Weight of the KL to the reference.", ge=0)
    kl_in: Literal["reward", "loss"] = setting("reward", "Where the KL stands: k1 in the reward, or k2 in the loss.")
    kl_form: Literal["plain", "convex"] = setting(
        "plain", "plain: score - kl_coef KL. convex: (1 - kl_coef) score - kl_coef KL, as Lee et al. write it."
    )
    kl_target: float | None = setting(None, "Adapt kl_coef towards this KL (nats a response).", gt=0)
    max_kl: float | None = setting(
        None, "Stop before the update of a step whose mean KL (nats a response) is above this.", gt=0
    )
    clip: float = setting(0.2, "The ratio's clip range.", gt=0)
    value_clip: float = setting(0.2, "The value's clip range.", gt=0)
    value_coef: float = setting(0.1, "Weight of the value loss.", ge=0)
    gamma: float = setting(1.0, "Discount.", gt=0, le=1)
    lam: float = setting(0.95, "GAE's lambda.", ge=0, le=1)
    missing_eos_penalty: float | None = setting(
        None, "The score of a response that did not end by itself; default: its own score stands."
    )
    length_penalty: float = setting(0.0, "Taken from the score for every token of the response.", ge=0)
    length_control: bool = setting(
        False,
        "Take out of each step's scores what the responses' lengths explain of them: nothing is gained by length.",
    )
    importance_cap: float = setting(2.0, "Cap of the importance weights between engine and trainer.", gt=0)
    max_mismatch: float = setting(
        0.2, "Stop when mean |engine - trainer| log-prob is beyond this: the weights were not synced.", gt=0
    )
    max_unscored: float = setting(
        0.2,
        "The share of a step's responses that may be left without a score: they are not trained on. Above it the run "
        "stops, and can be resumed, also with another share.",
        ge=0,
        le=1,
        output=False,
    )
    eval_function: Functions = setting(
        (),
        "FILE.py:NAME, a Python function that scores the answers to held-out prompts: a measure that nothing is "
        "trained on; the file is run as code. May be given several times. See docs/ppo.md.",
    )
    eval_judge: str | None = setting(
        None,
        "This judge compares the policy's answers to held-out prompts with the start's, and the weights with the "
        "highest win rate are kept. Half of the held-out prompts choose; on the other half the chosen weights are "
        "measured. Use a different judge from the reward's.",
    )
    eval_constitution: str | None = setting(None, "For --eval-judge: a constitution. Default: --constitution.")
    eval_method: Literal["pairwise", "score", "contrast"] = setting("pairwise", "For --eval-judge: as in `label`.")
    eval_every: int = setting(
        10,
        "For --eval-function and --eval-judge: steps between evaluations; there is one at the start and one at the "
        "end too.",
        ge=1,
    )
    eval_fraction: float = setting(
        0.1,
        "For --eval-function and --eval-judge: the share of the prompts held out, two at least.",
        gt=0,
        lt=1,
    )
    samples_every: int = setting(10, "Steps between samples written to samples.jsonl; 0: never.", ge=0, output=False)

    @model_validator(mode="after")
    def _can_be(self) -> PPOConfig:
        if self.top_p != 1:
            raise ValueError(
                "--top-p must be 1 with ppo: truncated sampling draws from another distribution than the one whose "
                "log-probs are trained, which biases the gradient; lower --temperature instead"
            )
        self._check_evaluation()
        if self.length_control and self.length_penalty:
            raise ValueError("--length-control takes out what --length-penalty puts in: give one of them")
        if self.kl_form == "convex" and (self.kl_target or self.kl_coef > 1):
            raise ValueError("--kl-form convex needs a fixed --kl-coef from 0 to 1")
        if self.advantage != "gae":
            if self.n < 2 and self.advantage != "reinforce":
                raise ValueError(f"--advantage {self.advantage} compares a prompt's responses: --n must be 2 or more")
            whole = () if self.advantage == "reinforce" else ("gamma",)  # a group's rewards are summed as they are
            for name in ("value_lr", "value_clip", "value_coef", "lam", *whole):
                if getattr(self, name) != type(self).model_fields[name].default:
                    option = name.replace("_", "-")
                    raise ValueError(f"--{option} belongs to --advantage gae: {self.advantage} has no value model")
        return self

    def _check_evaluation(self) -> None:
        function_names("--eval-function", self.eval_function)
        owners = {name: "--eval-judge" for name in ("eval_constitution", "eval_method") if self.eval_judge is None}
        if not self.evaluates:
            owners |= dict.fromkeys(("eval_every", "eval_fraction"), "--eval-function and --eval-judge")
        for name, owner in owners.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"--{name.replace('_', '-')} belongs to {owner}")
        if self.eval_judge is not None and self.eval_constitution is None and self.constitution is None:
            raise ValueError("--eval-judge needs --eval-constitution")

    @property
    def eval_functions(self) -> dict[str, str]:
        """What each of `eval_function` is called in results -> FILE.py:NAME."""
        names = function_names("--eval-function", self.eval_function)
        return dict(zip(names, self.eval_function, strict=True))

    @property
    def evaluates(self) -> bool:
        """Whether prompts are held out to measure the policy on."""
        return bool(self.eval_function) or self.eval_judge is not None

    @property
    def eval_comparison(self) -> CompareConfig:
        """How `eval_judge` is asked."""
        return CompareConfig(
            judge=(self.eval_judge or "",),
            constitution=self.eval_constitution or self.constitution or "",
            method=self.eval_method,
            engine=None if "fake" in (self.eval_judge, self.engine) else self.engine,
            engine_memory=self.engine_memory,
            truncate="middle",
            seed=self.seed,
        )


def result_output() -> Any:
    return setting("-", "Where the result (JSON) goes; per-item results go beside it.", short="-o", output=False)


class AlignmentConfig(CompareConfig):
    """How often a judge agrees with people, beside the rule that the longer response wins."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval alignment human.jsonl --judge org/judge --constitution helpfulness -o alignment.json",
    )
    pairs: str = setting(help=f"JSONL of {HUMAN_PAIRS}: {FROM}.", argument=True)
    output: str = result_output()


class WinRateConfig(CompareConfig):
    """How often a judge prefers the responses of A to those of B on the same prompts."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval win-rate after.jsonl before.jsonl --judge org/judge --constitution helpfulness -o win_rate.json",
    )
    a: str = setting(help="Candidates of the tuned model, or a model to sample from --prompts.", argument=True)
    b: str = setting(help="Candidates of the model it is compared with, or a model.", argument=True)
    output: str = result_output()
    prompts: str | None = setting(None, "Prompts to sample from, where A or B is a model.")
    n: int = setting(1, "Responses a prompt, where A or B is a model.", short="-n", ge=1)
    temperature: float = setting(1.0, "Of those samples.", ge=0)
    max_tokens: int = setting(256, "The longest of those responses, tokens.", ge=1)


class HarmlessRateConfig(JudgeConfig):
    """The share of responses that a judge finds harmless, each by itself; by every principle, and by their mean."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval harmless-rate after.jsonl --judge org/judge --constitution harmlessness -o harmless.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    constitution: str = setting("harmlessness", "A shipped constitution's name, or a YAML file.")
    principles: tuple[str, ...] = setting(("all",), "'all', or the ids of those to ask.")
    output: str = result_output()

    @field_validator("principles")
    @classmethod
    def _not_drawn(cls, principles: tuple[str, ...]) -> tuple[str, ...]:
        if principles == ("sample",):
            raise ValueError("'sample' is for comparisons: here every response is asked about the same ones")
        return principles


class RewardConfig(RewardSourceConfig):
    """The mean reward of candidates by a reward model, a judge or functions; of two files, and their difference."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval reward after.jsonl --baseline before.jsonl --reward-model rm -o reward.json",
        "rlaif eval reward after.jsonl --baseline before.jsonl --reward-function checks.py:exact -o exact.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    baseline: str | None = setting(None, "Other candidates for the same prompts, to compare with.")
    output: str = result_output()
    engine: EngineName | None = setting(None, "What runs a judge. Default: vllm; fake where the judge is 'fake'.")
    precision: Precision = setting("auto", "bf16 autocast, or fp32; auto: bf16 where the machine has it.")
    tokens_per_batch: int = setting(4096, "Tokens that go through the model at once.", ge=64, output=False)


class BestOfNConfig(ScorersConfig, CompareConfig):
    """Whether a judge prefers the one of n responses that scores best to the first, and to a random one."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif eval best-of-n candidates.jsonl --reward-model rm --judge J --constitution helpfulness -o best.json",
    )
    candidates: str = setting(help=f"JSONL of candidates: {FROM}.", argument=True)
    output: str = result_output()
    precision: Precision = setting("auto", "bf16 autocast, or fp32; auto: bf16 where the machine has it.")
    tokens_per_batch: int = setting(4096, "Tokens that go through the model at once.", ge=64, output=False)

    @model_validator(mode="after")
    def _a_chooser(self) -> BestOfNConfig:
        if not self.sources:
            raise ValueError("something must choose: --reward-model or --reward-function")
        return self


class RewardModelEvalConfig(InputConfig):
    """How often a reward model agrees with people or with labels, beside the rule that the longer response wins."""

    examples: ClassVar[tuple[str, ...]] = ("rlaif eval reward-model human.jsonl --reward-model rm -o quality.json",)
    pairs: str = setting(help=f"JSONL of {HUMAN_PAIRS}, or of preferences: {FROM}.", argument=True)
    reward_model: Judges = setting(help="A reward model's folder. Several times: their probabilities are averaged.")
    output: str = result_output()
    max_length: int = setting(1024, "Prompt and response together, tokens; longer pairs are refused.", ge=8)
    precision: Precision = setting("auto", "bf16 autocast, or fp32; auto: bf16 where the machine has it.")
    tokens_per_batch: int = setting(4096, "Tokens that go through the model at once.", ge=64, output=False)


class LineageConfig(StageConfig):
    """From an output back to what it was made of. Every recorded hash is held against what stands there now."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif lineage policy",
        "rlaif lineage preferences.jsonl --verify --json",
    )
    path: str = setting(help="An output: a file, or the folder of a trained model.", argument=True)
    verify: bool = setting(False, "Hash the checkpoints too; without it, their manifests are asked.", output=False)
    as_json: bool = setting(False, "The tree as one JSON object.", flag="--json", output=False)


class ReportConfig(StageConfig):
    """Write a run's numbers, curves and samples as one page."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif report runs/demo -o report.html",
        "rlaif report runs/soft --beside runs/hard -o compared.html",
    )
    run_folder: str = setting(help="The folder of a run.", argument=True)
    output: str = setting(help="One HTML page; a name in .md or .json: the same numbers.", short="-o", output=False)
    beside: Names = setting((), "Another run, told beside this one; may be given several times.")
    card: bool = setting(
        False, "Also write a model card (README.md) into every checkpoint that the run trained.", output=False
    )
