"""Token-level PPO: sample, score, estimate advantages, update, sync the weights, repeat.

Follows Ziegler et al. (arXiv 1909.08593) and the N+ implementation details (arXiv 2403.17031); docs/ppo.md maps each
detail to the code. One difference: the logged entropy is the sampled estimate -mean log p(token).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif_cli.config.naming import option
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.data.atomic import read_rows
from rlaif_cli.data.messages import Message, as_messages
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.engines.base import Completion, request_seed
from rlaif_cli.errors import EngineError
from rlaif_cli.judge.provenance import judging_hashes
from rlaif_cli.models.metadata import context_length
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import ChatTokenizer, with_system
from rlaif_cli.stats.diversity import openings
from rlaif_cli.train import best_policy, evaluations, reward_function, scoring
from rlaif_cli.train.best_policy import Compare, Selection
from rlaif_cli.train.dataset import checked_rows, epoch_order
from rlaif_cli.train.evaluations import Evaluations
from rlaif_cli.train.math.advantages import remove_length_effect
from rlaif_cli.train.math.masked import explained_variance, masked_mean
from rlaif_cli.train.nn.lora import Adapted
from rlaif_cli.train.parallel.distributed import all_gather, broadcast_from_main, is_main, local_share
from rlaif_cli.train.ppo_update import Experience, Trainer, response_kl
from rlaif_cli.train.reward_source import RewardSource, check_reward_source
from rlaif_cli.train.rollout import Prompt, RolloutEngine
from rlaif_cli.train.runtime.best_weights import BestWeights
from rlaif_cli.train.runtime.checkpoint import TrainState
from rlaif_cli.train.runtime.clock import Clock
from rlaif_cli.train.runtime.export import save_trained_model
from rlaif_cli.train.runtime.metrics_log import MetricsLog, drop_rows_after
from rlaif_cli.train.runtime.optim import set_learning_rate
from rlaif_cli.train.runtime.run_folder import run_in_folder
from rlaif_cli.train.samples import SAMPLES, write_samples
from rlaif_cli.ui.progress import ProgressCallback, no_progress

# Increased whenever a step computes something different: a run started by an older version must not be resumed.
# 2: GRPO normalises scores without the KL; texts are stripped before scoring; prompts are held out by content.
# 3: held-out answers are in evaluations.items.jsonl.
VERSION = 3


def train_ppo(
    config: PPOConfig,
    make_reward: Callable[[Callable[[Path], Adapted | None]], RewardSource],
    compare: Compare | None = None,
    *,
    judge_fits: Callable[[list[Message]], str | None] = lambda _: None,
    progress: ProgressCallback = no_progress,
) -> dict[str, Any]:
    """Run the stage; see `PPOConfig`. Returns the summary's numbers.

    Args:
        make_reward: builds the reward; called once, with a function that loads a reward model as an adapter.
        compare: compares two responses with `config.eval_judge`.
        judge_fits: why a response to a prompt may not fit the judge's context; None if it fits.

    Raises:
        InputError: the prompts are invalid, or one does not fit the model's context.
        ModelError: a model cannot be found or loaded.
        EngineError: the engine's log-probs differ from the trainer's, or too many responses are unscored.
    """
    check_reward_source(config)
    functions = {name: reward_function.load(spec) for name, spec in config.eval_functions.items()}
    base = resolve_model(config.model)
    reward_path = resolve_model(config.reward_model[0]) if config.reward_model else None
    source, tokens = _source(config, base, judge_fits)
    if config.dry_run:
        return {"prompts": len(source)}

    def train(settings: dict[str, Any]) -> dict[str, Any]:
        prompts = [_prompt(config, record, ids) for record, ids in zip(source, tokens, strict=True)]
        trainer = Trainer(config, base, reward_path)
        reward = make_reward(trainer.load_adapter)
        weights = _run(config, settings, base, trainer, reward, prompts, compare, functions, progress)
        save_trained_model(config, trainer.policy, base)
        found = broadcast_from_main(lambda: _results(config, weights)) | {"rejected": source.rejected}
        return found | ({"weights": weights} if weights else {})

    inputs = {"input_sha256": source.sha256, "ppo_version": VERSION, **judging_hashes(config)}
    return run_in_folder(config, "ppo", base, train, **inputs)


def _source(
    config: PPOConfig, base: Path, judge_fits: Callable[[list[Message]], str | None]
) -> tuple[Source[PromptRecord], list[list[int]]]:
    """The prompts, and the tokens of each."""
    tokenizer, limit = ChatTokenizer(base), context_length(base)

    def convert(record: PromptRecord) -> list[int] | str:
        messages = with_system(as_messages(record.prompt), config.system)
        ids = tokenizer.chat(messages)
        need = len(ids) + config.max_tokens
        if need > limit:
            return f"prompt and response need {need} tokens, the model's context holds {limit}"
        return judge_fits(messages) or ids

    return checked_rows(config, config.prompts, PromptRecord, convert)


def _prompt(config: PPOConfig, record: PromptRecord, ids: list[int]) -> Prompt:
    messages = with_system(as_messages(record.prompt), config.system)
    return Prompt(record.id, messages, ids, record.reference, record.meta)


def _run(
    config: PPOConfig,
    settings: dict[str, Any],
    base: Path,
    trainer: Trainer,
    reward: RewardSource,
    prompts: list[Prompt],
    compare: Compare | None,
    functions: Mapping[str, RewardSource],
    progress: ProgressCallback,
) -> dict[str, Any] | None:
    """Run all steps; returns a summary of the selected weights, or None without selection."""
    folder = Path(config.output)
    state = TrainState(folder, settings, trainer.models, trainer.optimizer)
    position = state.load() or {"step": 0, "kl": trainer.kl.state_dict(), "best": None}
    trainer.kl.load_state_dict(position["kl"])
    log = MetricsLog(config, folder, resume_step=position["step"])
    for name in (SAMPLES, scoring.UNSCORED):
        drop_rows_after(folder / name, position["step"])
    engine = RolloutEngine(config, trainer.policy, base, max(len(p.token_ids) for p in prompts))
    prompts, held_out = best_policy.split(config, prompts)
    choice = Selection(held_out, compare) if compare and held_out.choosing else None
    measured = Evaluations(
        config, held_out.prompts, trainer.response_kl, reward, functions, choice, resume_step=position["step"]
    )
    best = BestWeights(folder, trainer.policy, position["best"], higher_is_better=True)

    def save(done: int) -> None:
        state.save({"step": done, "kl": trainer.kl.state_dict(), "best": best.record})
        best.state_saved()

    try:
        measured.evaluate(engine, 0)
        for step in range(position["step"], config.steps):
            done = step + 1
            try:
                numbers = ppo_step(config, trainer, engine, reward, functions, prompts, step, folder)
            except scoring.TooManyUnscored:
                save(step)
                raise
            stop = exceeds_max_kl(config, numbers)
            # A step beyond --max-kl makes no update; its weights are evaluated but never selected.
            numbers |= evaluate_if_due(
                measured, engine, best, done - stop, last=stop or done == config.steps, choose=not stop
            )
            log.add(done, **numbers)
            if stop:
                break
            if state.due(done, config.steps, config.save_every):
                save(done)
            note = f"reward {numbers['reward']:.3f}, KL {numbers['kl']:.2f}"
            progress(done, config.steps, note, numbers["reward"])
        return restore_best(measured, best) if choice and best.record else None
    finally:
        engine.close()
        log.close()


def evaluate_if_due(
    measured: Evaluations, engine: RolloutEngine, best: BestWeights, step: int, *, last: bool, choose: bool
) -> dict[str, Any]:
    """Evaluate the policy if an evaluation is due, and keep its weights if they are the best so far.

    Args:
        step: number of updates so far.
        last: whether this is the last step.
        choose: whether these weights may be selected.
    """
    if not measured.due(step, last=last):
        return {}
    clock = Clock()
    with clock("evaluation"):
        found = measured.evaluate(engine, step, choose=choose)
    seconds = {"seconds_evaluation": clock.seconds["evaluation"]}
    if found is None or not found.decided:
        return seconds
    best.update(found.value, step)
    return {"win_rate": found.value, "win_rate_n": len(found.decided)} | seconds


def restore_best(measured: Evaluations, best: BestWeights) -> dict[str, Any]:
    """Restore the best weights, and measure them on prompts that had no part in the selection."""
    assert best.record is not None
    best.restore()
    step = best.record["step"]
    comparisons = [row for row in measured.rows() if "win_rate" in row]
    highest = next(row["win_rate"] for row in comparisons if row["step"] == step)
    return {
        "step": step,
        "looks": len(comparisons),
        "highest_win_rate": round(highest["value"], 4),
        "highest_win_rate_n": highest["n"],
        **measured.report(step).as_json(),
    }


def ppo_step(
    config: PPOConfig,
    trainer: Trainer,
    engine: RolloutEngine,
    reward: RewardSource,
    functions: Mapping[str, RewardSource],
    prompts: list[Prompt],
    step: int,
    folder: Path,
) -> dict[str, Any]:
    """One PPO step; returns the numbers to log.

    Args:
        functions: evaluation functions by name; their scores are written with the samples.
    """
    clock = Clock()
    lr = set_learning_rate(trainer.optimizer, config, step, config.steps)
    with clock("sync"):
        engine.sync()
    with clock("rollout"):
        batch = step_prompts(prompts, config.prompts_per_step, config.seed, step)
        mine = local_share(batch)
        sampled = engine.sample(mine, local_share(sample_seeds(batch, config.seed, step)))
        rollouts = all_gather(sampled)
    completions = [c for r in rollouts for c in r.completions]
    with clock("reward"):
        scored = scoring.score_rollouts(reward, sampled)
        scores = shaped_scores(config, scored.values, completions)
        unscored = scoring.record_unscored(folder, step + 1, rollouts, scores, scored.reasons)
        trained_on, kept_scores = scoring.trainable_rollouts(config, rollouts, scores)
        scoring.check_unscored(config, unscored, len(completions), len(trained_on), step + 1)
    with clock("forward"):
        experience = trainer.experience(trained_on, kept_scores)
    numbers = broadcast_from_main(lambda: describe(experience, trainer.kl.value))
    check_mismatch(numbers["mismatch"], config.max_mismatch)
    if not exceeds_max_kl(config, numbers):
        with clock("update"):
            numbers |= trainer.update(experience, step)
    trainer.kl.update(numbers["kl"], int(kept_scores.isfinite().sum()))
    if config.samples_every and step % config.samples_every == 0 and is_main():
        write_samples(folder, step + 1, rollouts, scores, functions)
    samples_per_second = len(completions) / sum(clock.seconds.values())
    seconds = {f"seconds_{name}": value for name, value in clock.seconds.items()}
    return numbers | {
        "reward": float(scored.values.nanmean()),
        **scored.means(),
        "unscored": len(unscored),
        "openings_share": openings([c.reply for c in completions])["share"],
        "ended": sum(c.finish_reason == "stop" for c in completions) / len(completions),
        "lr": lr,
        "samples_per_second": samples_per_second,
        **seconds,
    }


@torch.no_grad()
def describe(experience: Experience, kl_coef: float) -> dict[str, float]:
    """The metrics of a step's scored responses; docs/metrics.md explains each."""
    e, mask, scored = experience, experience.mask, experience.scores.isfinite()
    kl = response_kl(e.old_logprobs, e.ref_logprobs, mask)
    values = {}
    if e.old_values is not None and e.returns is not None:
        values["explained_variance"] = float(explained_variance(e.old_values, e.returns, mask))
    return values | {
        "score": float(e.scores[scored].mean()),
        "kl": float(kl[scored].mean()),
        "kl_coef": kl_coef,
        "entropy": float(-masked_mean(e.old_logprobs, mask)),
        "response_length": float(mask[scored].sum(1).float().mean()),
        "mismatch": float(masked_mean((e.rollout_logprobs - e.old_logprobs).abs(), mask)),
        "importance_weight": float(masked_mean(e.weights, mask)),
    }


def check_mismatch(mismatch: float, bound: float) -> None:
    """Raises: EngineError: the engine's log-probs differ too much from the trainer's: it sampled with other weights."""
    if not mismatch <= bound:
        raise EngineError(
            f"the engine's log-probs differ from the trainer's by {mismatch:.3f} nats per token on average "
            f"(bound {bound:g}): its weights were not synced",
            hint=f"report this with the model's name; {option('max_mismatch')} sets the bound",
        )


def shaped_scores(config: PPOConfig, raw: Tensor, completions: Sequence[Completion]) -> Tensor:
    """The scores to train on, [S]: the reward after `missing_eos_penalty` and the length options.

    NaN (unscored) stays NaN.
    """
    ended = torch.tensor([c.finish_reason == "stop" for c in completions])
    scores = raw if config.missing_eos_penalty is None else raw.where(ended | raw.isnan(), config.missing_eos_penalty)
    lengths = torch.tensor([float(len(c.token_ids)) for c in completions])
    if config.length_control:
        return remove_length_effect(scores, lengths, config.n)
    return scores - config.length_penalty * lengths


def exceeds_max_kl(config: PPOConfig, numbers: dict[str, Any]) -> bool:
    """Whether the KL to the reference exceeds `max_kl`."""
    return config.max_kl is not None and numbers["kl"] > config.max_kl


def step_prompts(prompts: list[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """The prompts of a step: shuffled passes over all prompts, determined by seed and step only."""
    positions = (divmod(position, len(prompts)) for position in range(step * count, (step + 1) * count))
    return [prompts[epoch_order(len(prompts), seed, epoch)[index]] for epoch, index in positions]


def sample_seeds(batch: Sequence[Prompt], seed: int, step: int) -> list[int]:
    """A seed per prompt of a step; repeated prompts get different seeds, so that their samples differ."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in batch:
        repeat = [seen[prompt.id]] if seen[prompt.id] else []
        seeds.append(request_seed(seed, step, prompt.id, *repeat))
        seen[prompt.id] += 1
    return seeds


def _results(config: PPOConfig, weights: dict[str, Any] | None) -> dict[str, Any]:
    """The summary: means over the first and last steps of the log, and the evaluations.

    Args:
        weights: the summary of the selected weights, or None without selection.
    """
    rows = read_rows(Path(config.output) / "metrics.jsonl")
    edge = max(1, len(rows) // 5)

    def mean(name: str, part: list[dict[str, Any]]) -> float:
        return round(sum(row[name] for row in part) / len(part), 4)

    return {
        "steps": len(rows),
        "stopped_by_kl": exceeds_max_kl(config, rows[-1]),
        "unscored": sum(row["unscored"] for row in rows),
        "reward_first": mean("reward", rows[:edge]),
        "reward_last": mean("reward", rows[-edge:]),
        "kl_last": mean("kl", rows[-edge:]),
        "samples_per_second": mean("samples_per_second", rows),
        **(
            {"evaluations": evaluations.summary(config, weights["step"] if weights else None)}
            if config.evaluates
            else {}
        ),
    }
