"""The table of stages: to add one, write a config class and a function, and add a row here.

A row names its parts as "module:attribute". They are imported when they are used, so that every layer may read the
table, and `rlaif --help` imports no stage. `tests/test_registry.py` finds each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from rlaif_cli.config.base import StageConfig
from rlaif_cli.ui.progress import ProgressCallback

Makes = Literal["records", "preferences", "fine-tuned model", "reward model", "policy", "result", "page"]
MODELS: tuple[Makes, ...] = ("fine-tuned model", "reward model", "policy")
_ENDINGS: dict[Makes, str] = {"records": ".jsonl", "preferences": ".jsonl", "result": ".json", "page": ".html"}


def data_fields(stage: str | None = None) -> list[str]:
    """The settings that name files of records: those of a stage, or of all if there is no such stage."""
    rows = [STAGES[stage]] if stage in STAGES else STAGES.values()
    return list(dict.fromkeys(name for row in rows for name in row.config_class.data_fields()))


def part(name: str) -> Any:
    """The object that "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class Finding:
    """What the report says about a stage.

    Attributes:
        title: the words before the sentence, such as "Win rate".
        describe: names a function `describe(stage, run) -> the parts of the sentence`; without parts nothing is said.
        place: the report lists its findings in this order, that of the chain of checks.
    """

    title: str
    describe: str
    place: int


@dataclass(frozen=True)
class Stage:
    """A row of the table. Without the optional parts, the stage does without what they add.

    Attributes:
        config: names its config class, whose fields are the options of its subcommand.
        function: names `function(config, engines, *, progress) -> its results`; `engines` is an EnginePool.
        makes: what its output is.
        command: names `command(config) -> exit code`, which runs it as a subcommand with messages of its own.
        counter: names `counter(config, files) -> (Plan, File of the output or None)`, for the estimates of `--dry-run`.
        needs: names `needs(config) -> the (name, check) pairs` to look up before a pipeline starts, beside the files,
            models, functions and constitutions that the fields of every config name.
        finding: its line in the report.
        story: names `story(stage, run) -> how the report says that its output was made`.
    """

    config: str
    function: str
    makes: Makes
    command: str = ""
    counter: str = ""
    needs: str = ""
    finding: Finding | None = None
    story: str = ""

    @property
    def config_class(self) -> type[StageConfig]:
        return part(self.config)

    def run(self, config: Any, engines: Any, progress: ProgressCallback) -> dict[str, Any]:
        """Run the stage in this process."""
        return part(self.function)(config, engines, progress=progress)

    @property
    def ending(self) -> str:
        """The extension of its output; "" for the folder of a model."""
        return _ENDINGS.get(self.makes, "")

    @property
    def trains(self) -> bool:
        return self.makes in MODELS


# A stage whose name has two words is a subcommand of a group: the help text of each.
GROUPS = {"eval": "Evaluate judges, reward models and policies."}

# In the order of `--help`.
STAGES: dict[str, Stage] = {
    "generate": Stage(
        config="rlaif_cli.config.engine:GenerateConfig",
        function="rlaif_cli.stages.generate:run",
        makes="records",
        command="rlaif_cli.cli.generate:run",
        counter="rlaif_cli.pipeline.plan.counts:generate",
        finding=Finding("Candidates", "rlaif_cli.report.findings:candidates", place=10),
    ),
    "revise": Stage(
        config="rlaif_cli.config.engine:ReviseConfig",
        function="rlaif_cli.stages.revise:run",
        makes="records",
        command="rlaif_cli.cli.revise:run",
        counter="rlaif_cli.pipeline.plan.counts:revise",
        needs="rlaif_cli.pipeline.preflight:principles_of_revisions",
    ),
    "label": Stage(
        config="rlaif_cli.config.judge:LabelConfig",
        function="rlaif_cli.stages.label:run",
        makes="preferences",
        command="rlaif_cli.cli.label:run",
        counter="rlaif_cli.pipeline.plan.counts:label",
        finding=Finding("Labels", "rlaif_cli.report.findings:labels", place=20),
        story="rlaif_cli.report.advice:labelled",
    ),
    "sft": Stage(
        config="rlaif_cli.config.train:SftConfig",
        function="rlaif_cli.train.sft:run",
        makes="fine-tuned model",
        command="rlaif_cli.cli.sft:run",
        counter="rlaif_cli.pipeline.plan.counts:sft",
        story="rlaif_cli.report.advice:fine_tuned",
    ),
    "train-rm": Stage(
        config="rlaif_cli.config.train:RewardModelConfig",
        function="rlaif_cli.train.reward_model:run",
        makes="reward model",
        command="rlaif_cli.cli.train_rm:run",
        counter="rlaif_cli.pipeline.plan.counts:train_rm",
        finding=Finding("Reward model", "rlaif_cli.report.findings:reward_model", place=40),
        story="rlaif_cli.report.advice:reward_model",
    ),
    "ppo": Stage(
        config="rlaif_cli.config.ppo:PPOConfig",
        function="rlaif_cli.train.ppo_stage:run",
        makes="policy",
        command="rlaif_cli.cli.ppo:run",
        counter="rlaif_cli.pipeline.plan.counts:ppo",
        finding=Finding("PPO", "rlaif_cli.report.findings:ppo", place=50),
        story="rlaif_cli.report.advice:ppo",
    ),
    "eval alignment": Stage(
        config="rlaif_cli.config.evaluate:AlignmentConfig",
        function="rlaif_cli.evaluation.alignment:alignment",
        makes="result",
        counter="rlaif_cli.pipeline.plan.counts:alignment",
        finding=Finding("Judge", "rlaif_cli.report.findings:alignment", place=30),
    ),
    "eval win-rate": Stage(
        config="rlaif_cli.config.evaluate:WinRateConfig",
        function="rlaif_cli.evaluation.win_rate:win_rate",
        makes="result",
        counter="rlaif_cli.pipeline.plan.counts:win_rate",
        needs="rlaif_cli.pipeline.preflight:models_of_a_win_rate",
        finding=Finding("Win rate", "rlaif_cli.report.findings:win_rate", place=90),
    ),
    "eval harmless-rate": Stage(
        config="rlaif_cli.config.evaluate:HarmlessRateConfig",
        function="rlaif_cli.evaluation.harmless_rate:harmless_rate",
        makes="result",
        counter="rlaif_cli.pipeline.plan.counts:harmless_rate",
        finding=Finding("Harmless rate", "rlaif_cli.report.findings:harmless_rate", place=100),
    ),
    "eval reward-model": Stage(
        config="rlaif_cli.config.evaluate:RewardModelEvalConfig",
        function="rlaif_cli.evaluation.reward_model:run",
        makes="result",
        counter="rlaif_cli.pipeline.plan.counts:reward_model",
        finding=Finding("Reward model and people", "rlaif_cli.report.findings:reward_model_and_people", place=60),
    ),
    "eval best-of-n": Stage(
        config="rlaif_cli.config.evaluate:BestOfNConfig",
        function="rlaif_cli.evaluation.best_of_n:run",
        makes="result",
        finding=Finding("Best of n", "rlaif_cli.report.findings:best_of_n", place=70),
    ),
    "eval reward": Stage(
        config="rlaif_cli.config.evaluate:RewardConfig",
        function="rlaif_cli.evaluation.reward:run",
        makes="result",
        counter="rlaif_cli.pipeline.plan.counts:reward",
        finding=Finding("Reward", "rlaif_cli.report.findings:reward", place=80),
    ),
    "report": Stage(
        config="rlaif_cli.config.report:ReportConfig",
        function="rlaif_cli.report.write:run",
        makes="page",
        command="rlaif_cli.cli.report:run",
        counter="rlaif_cli.pipeline.plan.counts:report",
    ),
}
