"""The chain of conditions for a run to have helped, each with a number and an interval.

The judge agrees with people; the reward model agrees with people; the trained policy wins against its start; a gold
measure that was not trained on rises too; and the gain is not due to length, a common opening or harm. Conditions that
were not measured are shown as such: they do not hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlaif_cli.report.harm import harmless_link
from rlaif_cli.report.link import Link, Verdict
from rlaif_cli.report.outcomes import gold_link, length_link, openings_link, win_rate_link
from rlaif_cli.report.run_folder import Run, Stage
from rlaif_cli.report.teachers import judge_link, reward_model_link
from rlaif_cli.report.trace import is_from, is_from_start, last_policies, reward_models, teacher


@dataclass(frozen=True)
class Chain:
    """The links of one policy; `policy` is the name of its stage, "" in a run that trained none."""

    policy: str
    links: tuple[Link, ...]

    def link(self, name: str) -> Link | None:
        return next((link for link in self.links if link.name == name), None)

    def verdict(self, name: str) -> Verdict:
        """The verdict of the link of that name; "not measured" if the chain has no such link."""
        found = self.link(name)
        return found.verdict if found else "not measured"


def chains(run: Run) -> list[Chain]:
    """One chain per final policy of the run, several for a matrix; one chain even if no policy was trained."""
    return [_chain(run, policy) for policy in last_policies(run)] or [_chain(run, None)]


def win_stage(run: Run, policy: Stage | None) -> Stage | None:
    """The last win rate of the policy, preferably against its start; in a run without a policy, the last win rate."""
    found = [stage for stage in run.of("eval win-rate") if stage.results.get("win_rate")]
    if policy is not None:
        found = [stage for stage in found if is_from(run, stage.settings.get("a"), policy)]
        found = [stage for stage in found if is_from_start(run, stage.settings.get("b"), policy)] or found
    return found[-1] if found else None


def _chain(run: Run, policy: Stage | None) -> Chain:
    wins, taught = win_stage(run, policy), teacher(run, policy)
    links = []
    if taught or run.of("eval alignment"):
        links.append(judge_link(run, taught))
    if models := reward_models(run, policy):
        links.append(reward_model_link(run, models))
    if policy is not None or wins is not None:
        links += [win_rate_link(wins), gold_link(run, policy), length_link(run, wins), openings_link(policy, wins)]
        links.append(harmless_link(run, policy, wins))
    return Chain(policy.name if policy else "", tuple(links))
