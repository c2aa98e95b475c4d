"""Agreement of a reward model with human preferences or labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlaif_cli.config.evaluate import RewardModelEvalConfig
from rlaif_cli.data.messages import as_messages
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import HumanPair
from rlaif_cli.evaluation.agreement import agreement
from rlaif_cli.evaluation.result import check_preferences, planned, save
from rlaif_cli.models.metadata import check_reward_model
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.stats.calibration import entropy
from rlaif_cli.train.nn.heads import load_reward_model
from rlaif_cli.train.nn.packing import Group
from rlaif_cli.train.reward_model import log_loss, probability, score_groups, too_long
from rlaif_cli.train.reward_source import RewardReader
from rlaif_cli.ui.progress import ProgressCallback


def reward_model(config: RewardModelEvalConfig) -> dict[str, Any]:
    """How often the reward model (or the mean probability of several) agrees with people or labels.

    Raises:
        InputError: the pairs are invalid, or none has a preference.
        ModelError: a folder is not a reward model.
    """
    paths = [resolve_model(name) for name in config.reward_model]
    for path in paths:
        check_reward_model(path)
    readers = {path: RewardReader(path) for path in paths}

    def fits(pair: HumanPair) -> str | None:
        reasons = (too_long(_group(pair, readers[path]), config.max_length) for path in paths)
        return next(filter(None, reasons), None)

    rejected = rejected_path(config.output, "reward-model")
    source = Source(config.pairs, HumanPair, skip_invalid=config.skip_invalid, rejected_path=rejected, check=fits)
    pairs = list(source)
    if config.dry_run:
        return planned("reward-model", len(pairs))
    check_preferences(pairs, config.pairs)
    human = np.array([pair.human_fraction_a for pair in pairs])
    scores = np.stack([_pair_scores(path, pairs, readers[path], config) for path in paths])  # [models, pairs, 2]
    p = probability(scores.reshape(-1, 2)).reshape(len(paths), -1).mean(0)
    lengths = np.array([(len(pair.response_a), len(pair.response_b)) for pair in pairs])
    prompts = [pair.cluster for pair in pairs]
    result = {
        "metric": "reward-model",
        "reward_model": list(config.reward_model),
        **agreement(p, human, lengths, [pair.source for pair in pairs], prompts),
        "loss": round(log_loss(p, human), 9),
        "entropy_floor": round(float(entropy(human).mean()), 9),
    }
    items = (
        {
            "id": pair.id,
            "prompt_key": prompt,
            "source": pair.source,
            "p_a": float(probability_a),
            "human_fraction_a": pair.human_fraction_a,
            "length_a": length_a,
            "length_b": length_b,
            "rewards": rewards.tolist(),  # [models, (a, b)], not normalized
        }
        for pair, prompt, probability_a, (length_a, length_b), rewards in zip(
            pairs, prompts, p, lengths.tolist(), scores.swapaxes(0, 1), strict=True
        )
    )
    return save(config, result, items)


def _group(pair: HumanPair, reader: RewardReader) -> Group:
    return reader.group(as_messages(pair.prompt), (pair.response_a, pair.response_b))


def _pair_scores(path: Path, pairs: list[HumanPair], reader: RewardReader, config: RewardModelEvalConfig) -> Any:
    """[pairs, 2]; the model is freed afterwards."""
    model = load_reward_model(path).eval().requires_grad_(False)
    groups = [_group(pair, reader) for pair in pairs]
    return score_groups(model, groups, config.precision, config.tokens_per_batch)


def run(config: RewardModelEvalConfig, engines: Any, *, progress: ProgressCallback) -> dict[str, Any]:
    """The stage as `registry.py` has it; it needs no engine and shows no progress."""
    return reward_model(config)
