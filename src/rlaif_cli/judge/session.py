"""The judge of a config, and checks of its settings before compute is spent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlaif_cli.config.judge import CompareConfig, JudgeConfig
from rlaif_cli.config.naming import option
from rlaif_cli.engines import Engine, EnginePool, resolve
from rlaif_cli.engines.deferred import DeferredEngine
from rlaif_cli.engines.server_account import attached, open_account, start_over
from rlaif_cli.engines.tokenizer import open_tokenizer
from rlaif_cli.errors import UsageError
from rlaif_cli.judge import Judge, make_judge, make_panel, named_principles
from rlaif_cli.judge.constitution import Constitution
from rlaif_cli.models.tokenizer import AnyTokenizer


def check_principles(config: JudgeConfig, constitution: Constitution) -> None:
    """Check, before compute is spent, that the principles exist and work with the method."""
    drawn = tuple(config.principles) == ("sample",)
    for principle in named_principles(constitution, ("all",) if drawn else config.principles):
        if config.method == "contrast":
            principle.contrast_prompts()
        shots = config.shots if isinstance(config, CompareConfig) else 0
        if (found := len(constitution.exemplars_for(principle))) < shots:
            raise UsageError(
                f"{option('shots')} {shots}: only {found} exemplars of '{constitution.name}' fit the principle "
                f"'{principle.id}'"
            )


class JudgeSession:
    """The judges of a config. They can build their questions at once; their engines are started when they are asked.

    Attributes:
        models: the judges' models, each resolved once, by the names that records have.
        members: the judges, one for each model.

    Raises:
        ModelError: a model cannot be found, has no tokenizer, or cannot be asked by the config's method.
    """

    def __init__(self, config: JudgeConfig, constitution: Constitution) -> None:
        self._config = config
        models = [resolve(config, name) for name in config.judge]
        self.models = dict(zip(config.judge_names, models, strict=True))
        opened = [open_tokenizer(config, model) for model in models]
        self.tokenizers: list[AnyTokenizer] = [tokenizer for tokenizer, _ in opened]
        self.limits = [limit for _, limit in opened]
        self._engines = [DeferredEngine(tokenizer) for tokenizer in self.tokenizers]
        self.members: list[Judge] = [make_judge(config, constitution, engine) for engine in self._engines]

    def start(self, engines: EnginePool) -> tuple[Judge, dict[str, Engine]]:
        """The judge, or the panel of several, and the engines that it asks, by the names that records have."""
        started = engines.get_all(self._config, list(self.models.values()))
        for deferred, engine in zip(self._engines, started, strict=True):
            deferred.start(engine)
        return make_panel(self._config, self.members), dict(zip(self.models, started, strict=True))

    @contextmanager
    def evaluating(self, engines: EnginePool) -> Iterator[Judge]:
        """The judge of an evaluation that lasts as long as this context; `--batch` and `--max-cost` keep its answers.

        Raises:
            Paused: they are waiting for a batch or a higher budget.
        """
        start_over(self._config)
        judge, started = self.start(engines)
        with open_account(self._config, {}) as account, attached(list(started.values()), account):
            yield judge
            if account is not None:
                account.check("the answers so far are kept")
