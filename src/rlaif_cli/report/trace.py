"""Trace stages of a run: from its last policy back to the reward model, the judge and the compared responses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlaif_cli.report.findings import names
from rlaif_cli.report.run_folder import Run, Stage

_JUDGING = ("judge", "constitution", "method")  # settings that two stages with the same judge have in common


def same_path(one: Any, other: Any) -> bool:
    return bool(one and other) and os.path.normpath(str(one)) == os.path.normpath(str(other))


def maker(run: Run, path: Any) -> Stage | None:
    """The stage with this output; None for a file or model from outside the run."""
    return next((stage for stage in run.stages if same_path(stage.settings.get("output"), path)), None)


def last_policies(run: Run) -> list[Stage]:
    """The trained policies that no other training stage starts from; several in a matrix.

    Without a policy tuned on a reward, fine-tuned models count as policies.
    """
    trained = run.making("policy") or run.making("fine-tuned model")
    starts = [stage.settings.get("model") for stage in trained]
    return [stage for stage in trained if not any(same_path(stage.settings.get("output"), start) for start in starts)]


def is_from(run: Run, responses: Any, policy: Stage) -> bool:
    """Whether the policy wrote these responses: a candidates file, or a model that is sampled."""
    return _wrote(run, responses, policy.settings.get("output"))


def is_from_start(run: Run, responses: Any, policy: Stage) -> bool:
    """Whether the model that the policy started from wrote these responses."""
    return _wrote(run, responses, policy.settings.get("model"))


def _wrote(run: Run, responses: Any, model: Any) -> bool:
    made = maker(run, responses)
    return same_path(responses, model) or (made is not None and same_path(made.settings.get("model"), model))


def reward_models(run: Run, policy: Stage | None) -> list[str]:
    """The reward models that the policy was trained with; in a run without a policy, the last one trained."""
    if policy is not None:
        return names(policy.settings, "reward_model")
    return [str(stage.settings.get("output")) for stage in run.making("reward model")[-1:]]


def teacher(run: Run, policy: Stage | None) -> Stage | None:
    """The stage whose judge the policy learned from: its own, or the one that labelled its reward model's pairs.

    If neither is known: the last label stage. None for a policy that learned from functions alone.
    """
    if policy is not None and policy.settings.get("judge"):
        return policy
    models = reward_models(run, policy)
    if policy is not None and policy.makes == "policy" and not models:
        return None
    made = [maker(run, model) for model in models]
    labels = [maker(run, stage.settings.get("preferences")) for stage in made if stage]
    found = [stage for stage in [*run.making("preferences"), *labels] if stage and stage.makes == "preferences"]
    return found[-1] if found else None


def asks_alike(one: Stage, other: Stage) -> bool:
    """Whether two stages ask the same judge by the same constitution and method."""
    return all(names(one.settings, key) == names(other.settings, key) for key in _JUDGING)


def same_principles(one: Stage, other: Stage) -> bool:
    return names(one.settings, "principles") == names(other.settings, "principles")


def function_name(spec: str) -> str:
    """`examples/demo/gold.py:tone` -> `tone`."""
    return Path(spec).name.rpartition(":")[2]
