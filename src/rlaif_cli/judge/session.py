"""Open the judge of a config."""

from __future__ import annotations

from rlaif_cli.config.judge import CompareConfig, JudgeConfig
from rlaif_cli.engines import EnginePool
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
