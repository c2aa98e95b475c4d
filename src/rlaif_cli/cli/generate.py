"""rlaif generate"""

from __future__ import annotations

from rlaif_cli.cli.options import partial
from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.ui.console import Console


def run(config: GenerateConfig, console: Console) -> int:
    from rlaif_cli.data.paths import rejected_path
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.stages.generate import generate

    with EnginePool() as engines, console.progress("generate") as progress:
        summary = generate(config, engines, progress=progress)
    if config.dry_run:
        console.say(
            f"{summary.rows} prompts, {summary.rows * config.n} responses, "
            f"at most {summary.rows * config.n * config.max_tokens} tokens"
        )
        return 0
    resumed = f" ({summary.resumed} already done)" if summary.resumed else ""
    console.say(
        f"generate: {summary.rows} rows{resumed}, {summary.responses} responses, {summary.tokens_out} tokens, "
        f"{summary.unfinished} cut at {config.max_tokens} tokens"
        + (f", {summary.unanswered} of them inside their reasoning, without an answer" if summary.unanswered else "")
        + (f", {summary.refused} refusals" if summary.refused else "")
    )
    if summary.without_text:
        console.warn(f"{summary.without_text} answers were not usable responses; their rows have fewer")
    return partial(console, summary.rejected, str(rejected_path(config.output, "generate")))
