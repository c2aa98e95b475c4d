"""What has to hold for a run to have helped, link by link, each with its number and its interval.

A judge that people agree with teaches a reward model; the policy that climbs it wins against its start; a measure that
nothing was trained on rises too; and the gain is not length, not one opening for everything, and not harm. What was not
measured says so: a missing link is not a link that holds.
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
    """The links of one policy; `policy` is its stage, "" in a run that trained none."""

    policy: str
    links: tuple[Link, ...]

    def link(self, name: str) -> Link | None:
        return next((link for link in self.links if link.name == name), None)

    def verdict(self, name: str) -> Verdict:
        """Of the link of that name; also "not measured" where the chain has none."""
        found = self.link(name)
        return found.verdict if found else "not measured"


def chains(run: Run) -> list[Chain]:
    """One for each policy that the run ended with, several of a matrix; one also where no policy was trained."""
    return [_chain(run, policy) for policy in last_policies(run)] or [_chain(run, None)]


def win_stage(run: Run, policy: Stage | None) -> Stage | None:
    """The last win rate of the policy, over its start if there is one; in a run without a policy, the last of all."""
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
