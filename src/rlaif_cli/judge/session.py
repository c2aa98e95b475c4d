"""Open the judge of a config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlaif_cli.config.judge import CompareConfig, JudgeConfig
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.server_account import attached, open_account, start_over
from rlaif_cli.errors import UsageError
from rlaif_cli.judge import Judge, make_panel, named_principles
from rlaif_cli.judge.constitution import Constitution


def check_principles(config: JudgeConfig, constitution: Constitution) -> None:
    """Check, before compute is spent, that the principles exist and work with the method."""
    drawn = tuple(config.principles) == ("sample",)
    for principle in named_principles(constitution, ("all",) if drawn else config.principles):
        if config.method == "contrast":
            principle.contrast_prompts()
        shots = config.shots if isinstance(config, CompareConfig) else 0
        if (found := len(constitution.exemplars_for(principle))) < shots:
            raise UsageError(
                f"--shots {shots}: only {found} exemplars of '{constitution.name}' fit the principle '{principle.id}'"
            )


def open_judge(config: JudgeConfig, constitution: Constitution, engines: EnginePool) -> Judge:
    return make_panel(config, constitution, engines.get_all(config, config.judge))


@contextmanager
def judge_of_evaluation(config: JudgeConfig, constitution: Constitution, engines: EnginePool) -> Iterator[Judge]:
    """The judge of an evaluation, which ends with this context: with `--batch` or `--max-cost` its answers are kept.

    Raises:
        Paused: they are waiting for a batch or a higher budget.
    """
    start_over(config)
    judge = open_judge(config, constitution, engines)
    with open_account(config, {}) as account, attached(engines.get_all(config, config.judge), account):
        yield judge
        if account is not None:
            account.check("the answers so far are kept")
