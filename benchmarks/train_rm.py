"""How fast is reward training? Against TRL's RewardTrainer, on the same pairs, batches, start and learning rate.

    python benchmarks/train_rm.py PAIRS.jsonl [--model smollm2-135m | random-135m | random-1b] [--batch 32] [--steps 3]
                                              [--rounds 2] [--precisions bf16 fp32] [--tokens-per-batch 2048]
                                              [--contenders ours compiled padded trl]

ours: prompts shared by their pair, no padding. compiled: the same with `--compile`. padded: our loop, each response
with its own copy of the prompt. trl: RewardTrainer (pinned, in an environment of its own, made here), micro-batches of
`--trl-micro` pairs. Every contender runs in a process of its own, in turn, `--rounds` times, on the GPU where there is
one; the first `--warmup` steps of each are not counted. Hard labels, as TRL knows no others. Measured in the same run:
the bf16 and fp32 matmul rate of this machine. The share of it counts 6 x (parameters without the embedding) x tokens,
each shared prompt once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import peak_gib, run_apart, wait_for_device
from random_models import checkpoint


def matmul_rate(precision: str) -> float:
    """GFLOP/s of square products, the best of five."""
    import torch

    size, place = (8192, "cuda") if torch.cuda.is_available() else (2048, "cpu")
    a = torch.randn(size, size, device=place, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = 0.0
    for _ in range(5):
        wait_for_device()
        started = time.perf_counter()
        for _ in range(4):
            a @ a
        wait_for_device()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


# ------------------------------------------------------------------------------------------------ the data


def write_inputs(options: Any, folder: Path) -> dict[str, Any]:
    """The start checkpoint with one fresh head for all, and the pairs, in order, as texts and as token ids."""
    from rlaif_cli.data.messages import as_messages
    from rlaif_cli.data.records import HumanPair
    from rlaif_cli.models.resolve import resolve_model
    from rlaif_cli.models.tokenizer import ChatTokenizer
    from rlaif_cli.train.nn.heads import new_reward_model
    from rlaif_cli.train.runtime.export import save_checkpoint

    base = resolve_model(checkpoint(options.model, folder, options.tokenizer))
    start = new_reward_model(base, 0)
    save_checkpoint(start, base, folder / "start")
    embedding = start.get_input_embeddings().weight.numel()
    tokenizer = ChatTokenizer(base)
    rows, ids = [], []
    prompt_tokens = pair_tokens = 0
    for line in options.pairs.read_text("utf-8").splitlines():
        pair = HumanPair.model_validate_json(line)
        texts = (pair.response_a, pair.response_b)[:: 1 if pair.human_fraction_a > 0.5 else -1]
        prompt = as_messages(pair.prompt)
        lengths = [len(tokenizer.chat(prompt)), *(len(tokenizer.response(text)) for text in texts)]
        if pair.human_fraction_a == 0.5 or sum(lengths) > 1024:
            continue
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
        rows.append({"prompt": [m.model_dump() for m in prompt], "chosen": chosen, "rejected": rejected})
        ids.append({f"{side}_ids": tokenizer.chat(prompt) + tokenizer.response(text) for side, text in
                    zip(("chosen", "rejected"), texts, strict=True)})  # fmt: skip
        prompt_tokens, pair_tokens = prompt_tokens + lengths[0], pair_tokens + sum(lengths)
        if len(rows) == options.batch * (options.steps + options.warmup):
            break
    else:
        raise SystemExit(f"{options.pairs} holds {len(rows)} usable pairs, too few")
    for name, written in (("pairs", rows), ("ids", ids)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), "utf-8")
    return {
        "mean_prompt_tokens": round(prompt_tokens / len(rows), 1),
        "mean_pair_tokens": round(pair_tokens / len(rows), 1),
        "body_parameters": sum(p.numel() for p in start.parameters()) - embedding,
    }


# ------------------------------------------------------------------------------------------------ the contenders


def run_ours(options: Any, folder: Path, *, share_prompts: bool = True, compiled: bool = False) -> dict[str, Any]:
    from rlaif_cli.config.train import RewardModelConfig
    from rlaif_cli.data.records import Preference
    from rlaif_cli.models.tokenizer import ChatTokenizer
    from rlaif_cli.train.nn.heads import load_reward_model, trainable
    from rlaif_cli.train.reward_model import tokenize, train_step
    from rlaif_cli.train.runtime.optim import make_optimizer

    config = RewardModelConfig(
        preferences="-",
        output="-",
        model="-",
        lr=options.lr,
        precision=options.precision,
        centering=0.0,
        tokens_per_batch=options.tokens_per_batch,
        compile=compiled,
    )
    tokenizer = ChatTokenizer(folder / "start")
    lines = (folder / "pairs.jsonl").read_text("utf-8").splitlines()
    pairs = [tokenize(Preference.model_validate(json.loads(line) | {"p_chosen": 1.0}), tokenizer) for line in lines]
    model = trainable(load_reward_model(folder / "start"), config)
    optimizer = make_optimizer([(model, options.lr)], config)
    if not share_prompts:
        from rlaif_cli.train import reward_model

        reward_model.rewards = padded_rewards  # type: ignore[assignment]
    steps = []
    for first in range(0, len(pairs), options.batch):
        batch = pairs[first : first + options.batch]
        started = time.perf_counter()
        numbers = train_step(model, optimizer, batch, config)
        steps.append({"seconds": time.perf_counter() - started, "loss": numbers["loss"]})
    return {"steps": steps}


def padded_rewards(model: Any, batch: Any) -> Any:
    """Every response after its own copy of the prompt, right padded to the longest of the micro-batch."""
    import torch

    ids, rows, start = batch.input_ids[0], [], 0
    for prompt, *responses in batch.layout.groups:
        shared, start = ids[start : start + prompt], start + prompt
        for length in responses:
            rows.append(torch.cat([shared, ids[start : start + length]]))
            start += length
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = (torch.arange(padded.shape[1], device=ids.device) < lengths[:, None]).long()
    states = model.model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
    at = states[torch.arange(len(rows), device=ids.device), lengths - 1]
    return model.score(at)[:, 0].float().view(len(batch.layout.groups), -1)


def run_trl(options: Any, folder: Path) -> dict[str, Any]:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    # Given token ids, so that all train on the same. transformers finds the last token by the pad id, and this model's
    # is its end token: with it, the reward would be read one token early.
    data = load_dataset("json", data_files=str(folder / "ids.jsonl"), split="train")
    used = {token for row in data for side in ("chosen_ids", "rejected_ids") for token in row[side]}
    tokenizer = AutoTokenizer.from_pretrained(folder / "start")
    pad = tokenizer.convert_ids_to_tokens(next(i for i in range(len(tokenizer)) if i not in used))
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait_for_device()
            seconds.append(time.perf_counter() - self.started)

    arguments = RewardConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=options.trl_micro,
        gradient_accumulation_steps=options.batch // options.trl_micro,
        max_steps=options.steps + options.warmup,
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        adam_epsilon=1e-5,
        bf16=options.precision == "bf16",
        max_length=None,
        pad_token=pad,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder / "start", dtype="float32"),
        processing_class=tokenizer,
        args=arguments,
        train_dataset=data,
        callbacks=[Clock()],
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    steps = [{"seconds": took, "loss": loss} for took, loss in zip(seconds, losses, strict=True)]
    return {"steps": steps}


CONTENDERS: dict[str, Callable[[Any, Path], dict[str, Any]]] = {
    "ours": run_ours,
    "compiled": lambda options, folder: run_ours(options, folder, compiled=True),
    "padded": lambda options, folder: run_ours(options, folder, share_prompts=False),
    "trl": run_trl,
}


# ------------------------------------------------------------------------------------------------ the comparison


def summary(runs: list[dict[str, Any]], options: Any, data: dict[str, Any], rate: float) -> dict[str, Any]:
    seconds = [step["seconds"] for run in runs for step in run["steps"][options.warmup :]]
    pairs = options.batch / statistics.median(seconds)
    tokens = pairs * data["mean_pair_tokens"]
    return {
        "pairs_per_second": round(pairs, 3),
        "slowest_and_fastest_step": [round(options.batch / max(seconds), 3), round(options.batch / min(seconds), 3)],
        "tokens_per_second": round(tokens),
        "share_of_matmul_rate": round(6 * data["body_parameters"] * tokens / 1e9 / rate, 3),
        "peak_gib": round(max(run["peak_gib"] for run in runs), 2),
        "losses": [round(step["loss"], 4) for step in runs[0]["steps"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokenizer", default="smollm2-135m", help="for a model of random weights: a name or a folder")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--trl-micro", type=int, default=8)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--contenders", nargs="+", default=["ours", "padded", "trl"], choices=list(CONTENDERS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = CONTENDERS[options.child](options, options.folder)
        print(json.dumps(found | {"peak_gib": peak_gib()}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_inputs(options, folder)
        print(json.dumps(data), flush=True)
        for precision in options.precisions:
            runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in options.contenders}
            rates = []
            names = ("batch", "steps", "warmup", "lr", "tokens_per_batch", "trl_micro")
            passed = {option: getattr(options, option) for option in names}
            passed |= {"precision": precision, "folder": folder}
            for round_ in range(options.rounds):
                order = options.contenders[round_ % len(options.contenders) :]
                for contender in [*order, *(c for c in options.contenders if c not in order)]:
                    rates.append(matmul_rate(precision))
                    runs[contender].append(run_apart(__file__, contender, options.pairs, passed))
            rate = statistics.median(rates)
            found = {c: summary(runs[c], options, data, rate) for c in options.contenders}
            result: dict[str, Any] = {"precision": precision, "matmul_gflops": round(rate), **found}
            for other in found:
                if "ours" in found and other != "ours":
                    ratio = found["ours"]["pairs_per_second"] / found[other]["pairs_per_second"]
                    result[f"ours_to_{other}"] = round(ratio, 2)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
