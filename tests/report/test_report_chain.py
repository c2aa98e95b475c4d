"""The chain: what has to hold for a run to have helped, and what each link says at its edges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report_runs import estimate, make_run, make_summary, write_rows
from rlaif_cli.report import report_path, summary_lines, write_report
from rlaif_cli.report.advice import caution, headline, next_step
from rlaif_cli.report.chain import Chain, chains
from rlaif_cli.report.link import Link
from rlaif_cli.report.run_folder import Run
from rlaif_cli.report.wording import percents, signed

Stages = dict[str, dict[str, Any]]


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    """Those of a run in which every number shows an effect."""
    make_run(tmp_path)
    found: Stages = make_summary(tmp_path)["stages"]
    return found


def run_of(stages: Stages, folder: Path) -> Run:
    return Run.of_summary({"name": "demo", "stages": stages}, folder)


def chain_of(stages: Stages, folder: Path) -> Chain:
    (chain,) = chains(run_of(stages, folder))
    return chain


def link_of(name: str, stages: Stages, folder: Path) -> Link:
    link = chain_of(stages, folder).link(name)
    assert link is not None and len(link.sentence) <= 60, link
    return link


def added(stages: Stages, name: str, run: str, folder: Path, results: dict[str, Any], **settings: Any) -> None:
    settings = {"output": str(folder / f"{name}.json")} | settings
    stages[name] = {"run": run, "seconds": 1.0, "settings": settings, "results": results}


# ------------------------------------------------------------------------------------------------ the judge


@pytest.mark.parametrize(
    ("accuracy", "verdict", "words"),
    [
        ((0.77, 0.72, 0.81), "holds", "77 % of 300 human pairs [72, 81]; a coin: 50 %"),
        ((0.52, 0.46, 0.58), "not clear", "52 % of 300 human pairs [46, 58]; no better than a coin"),
        ((0.56, 0.5, 0.62), "not clear", "[50, 62]; no better than a coin"),
        ((0.56, 0.502, 0.62), "holds", "56.0 % of 300 human pairs [50.2, 62.0]"),
        ((0.3, 0.25, 0.35), "fails", "worse than a coin"),
    ],
)
def test_a_judge_beside_a_coin(
    stages: Stages, tmp_path: Path, accuracy: tuple[float, float, float], verdict: str, words: str
) -> None:
    stages["alignment"]["results"]["accuracy"] = estimate(*accuracy, 300)
    link = link_of("judge", stages, tmp_path)
    assert link.verdict == verdict and words in link.sentence
    assert "52.0 % [46.0, 58.0]" in link.more, "beside the rule that the longer response wins"


def test_nine_prompts_are_too_few_and_ten_are_enough(stages: Stages, tmp_path: Path) -> None:
    for prompts, verdict in ((9, "too few to tell"), (10, "holds")):
        stages["alignment"]["results"]["accuracy"] = estimate(0.9, 0.8, 0.95) | {"prompts": prompts}
        assert link_of("judge", stages, tmp_path).verdict == verdict


@pytest.mark.parametrize("setting", ["judge", "constitution", "method"])
def test_the_alignment_of_another_judge_says_nothing_about_this_one(
    stages: Stages, tmp_path: Path, setting: str
) -> None:
    stages["alignment"]["settings"][setting] = "another"
    link = link_of("judge", stages, tmp_path)
    assert (link.verdict, link.sentence) == ("not measured", "not measured")
    assert "rlaif eval alignment" in link.more and "different judge" in link.more
    run = run_of(stages, tmp_path)
    assert "was not measured" in caution(chains(run)[0])
    assert "Measure how far the judge agrees" in next_step(run, chains(run)[0])


def test_of_two_alignments_the_one_by_the_principles_of_the_labels(stages: Stages, tmp_path: Path) -> None:
    stages["preferences"]["settings"]["principles"] = ["clarity"]
    settings = stages["alignment"]["settings"] | {"principles": ["clarity"]}
    first = {
        "exact": {
            **stages["alignment"],
            "settings": settings,
            "results": {"n": 40, "accuracy": estimate(0.8, 0.7, 0.9)},
        }
    }
    assert "with different principles" in link_of("judge", stages, tmp_path).more
    assert "80 % of 40" in link_of("judge", first | stages, tmp_path).sentence


def test_a_judge_that_is_the_reward_is_the_judge_that_counts(stages: Stages, tmp_path: Path) -> None:
    settings = {"judge": "judge-m", "method": "score", "constitution": "helpfulness", "reward_model": []}
    stages["policy"]["settings"] |= settings
    chain = chain_of(stages, tmp_path)
    assert chain.verdict("judge") == "not measured", "the labels' method is another one"
    assert chain.link("reward model") is None
    stages["alignment"]["settings"] |= settings
    assert chain_of(stages, tmp_path).verdict("judge") == "holds"


# ------------------------------------------------------------------------------------------------ the reward model


def test_only_human_pairs_measure_a_reward_model(stages: Stages, tmp_path: Path) -> None:
    link = link_of("reward model", stages, tmp_path)
    assert link.verdict == "not measured" and "rlaif eval reward-model" in link.more
    results = {"n": 300, "accuracy": estimate(0.75, 0.69, 0.79, 300)}
    model = str(tmp_path / "rm")
    added(
        stages,
        "labels",
        "eval reward-model",
        tmp_path,
        results,
        reward_model=model,
        pairs=str(tmp_path / "preferences.jsonl"),
    )
    assert link_of("reward model", stages, tmp_path).verdict == "not measured"
    added(stages, "other", "eval reward-model", tmp_path, results, reward_model="else", pairs="people.jsonl")
    assert link_of("reward model", stages, tmp_path).verdict == "not measured"
    added(stages, "people", "eval reward-model", tmp_path, results, reward_model=[model], pairs="people.jsonl")
    assert link_of("reward model", stages, tmp_path).sentence == "75 % of 300 human pairs [69, 79]; a coin: 50 %"


def test_labels_of_another_run_are_no_human_pairs(stages: Stages, tmp_path: Path) -> None:
    write_rows(tmp_path / "old.jsonl", [{}])
    (tmp_path / "old.jsonl.manifest.json").write_text(json.dumps({"stage": "label", "settings": {}}))
    results = {"n": 300, "accuracy": estimate(0.75, 0.69, 0.79, 300)}
    pairs, model = str(tmp_path / "old.jsonl"), str(tmp_path / "rm")
    added(stages, "rm_eval", "eval reward-model", tmp_path, results, reward_model=model, pairs=pairs)
    assert link_of("reward model", stages, tmp_path).verdict == "not measured"


def test_the_human_pairs_of_train_rm_measure_it_too(stages: Stages, tmp_path: Path) -> None:
    human = {"pairs": 50, "prompts": 50, "accuracy": 0.7, "accuracy_interval": [0.56, 0.81]}
    stages["rm"]["results"]["human"] = human
    assert link_of("reward model", stages, tmp_path).sentence == "70 % of 50 human pairs [56, 81]; a coin: 50 %"


# ------------------------------------------------------------------------------------------------ the win rate


@pytest.mark.parametrize(
    ("win", "verdict"),
    [((0.75, 0.67, 0.82), "holds"), ((0.53, 0.46, 0.6), "not clear"), ((0.3, 0.2, 0.4), "fails")],
)
def test_the_policy_against_its_start(
    stages: Stages, tmp_path: Path, win: tuple[float, float, float], verdict: str
) -> None:
    stages["win-rate"]["results"]["win_rate"] = estimate(*win, 180)
    link = link_of("win rate", stages, tmp_path)
    assert link.verdict == verdict and "of 180 answers" in link.sentence
    assert "At equal length: 64.0 % [55.0, 73.0]" in link.more


def test_a_win_that_is_length_alone_does_not_hold(stages: Stages, tmp_path: Path) -> None:
    stages["win-rate"]["results"]["length_controlled"] = estimate(0.52, 0.44, 0.6)
    link = link_of("win rate", stages, tmp_path)
    assert link.verdict == "warning" and "at equal length not clear" in link.sentence


def test_a_win_of_other_responses_is_not_the_policys(stages: Stages, tmp_path: Path) -> None:
    stages["win-rate"]["settings"]["a"] = str(tmp_path / "before.jsonl")
    chain = chain_of(stages, tmp_path)
    assert chain.verdict("win rate") == "not measured" == chain.verdict("length")
    assert "was not measured" in headline(chains(run_of(stages, tmp_path)))


def test_the_start_is_what_a_policy_is_compared_with(stages: Stages, tmp_path: Path) -> None:
    over_another = stages["win-rate"]["settings"] | {"b": str(tmp_path / "other.jsonl")}
    better = stages["win-rate"]["results"] | {"win_rate": estimate(0.9, 0.85, 0.95, 180)}
    stages["later"] = stages["win-rate"] | {"settings": over_another, "results": better}
    link = link_of("win rate", stages, tmp_path)
    assert "71 %" in link.sentence and "before.jsonl" in link.more


def test_a_policy_that_is_sampled_by_the_win_rate_itself(stages: Stages, tmp_path: Path) -> None:
    stages["win-rate"]["settings"]["a"] = str(tmp_path / "policy")
    assert chain_of(stages, tmp_path).verdict("win rate") == "holds"


# ------------------------------------------------------------------------------------------------ the gold measure


def with_gold(stages: Stages, folder: Path, change: dict[str, Any], **settings: Any) -> Stages:
    settings = {"candidates": str(folder / "after.jsonl"), "reward_function": "examples/gold.py:tone"} | settings
    added(stages, "gold", "eval reward", folder, {"n": 120, "difference": change}, **settings)
    return stages


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ((0.134, 0.03, 0.24), "holds", "tone +0.13 [+0.03, +0.24], 120 prompts; it rose"),
        ((0.075, -0.02, 0.17), "not clear", "120 prompts; not clear"),
        ((-0.13, -0.24, -0.03), "fails", "it fell"),
        ((12345.0, 12000.0, 13000.0), "holds", "+12345 [+12000, +13000]"),
    ],
)
def test_a_measure_that_nothing_was_trained_on(
    stages: Stages, tmp_path: Path, change: tuple[float, float, float], verdict: str, words: str
) -> None:
    link = link_of("gold", with_gold(stages, tmp_path, estimate(*change, 120)), tmp_path)
    assert link.verdict == verdict and words in link.sentence


def test_what_was_trained_on_is_no_gold_measure(stages: Stages, tmp_path: Path) -> None:
    with_gold(stages, tmp_path, estimate(0.1, 0.05, 0.2))
    stages["policy"]["settings"]["reward_function"] = ["elsewhere/gold.py:tone"]
    link = link_of("gold", stages, tmp_path)
    assert link.verdict == "not measured" and "--reward-function" in link.more
    for settings in ({"reward_model": ["rm"]}, {"judge": "judge-m"}, {"candidates": str(tmp_path / "before.jsonl")}):
        stages["policy"]["settings"]["reward_function"] = []
        mixed = with_gold(dict(stages), tmp_path, estimate(0.1, 0.05, 0.2), **settings)
        assert link_of("gold", mixed, tmp_path).verdict == "not measured", settings


def evaluation(step: int, change: dict[str, Any] | None, share: float = 0.05) -> dict[str, Any]:
    openings = {"share": share, "commonest": "I'm thrilled to", "distinct": 90}
    return {"step": step, "prompts": 30, "functions_change": {"tone": change}, "openings": openings}


def test_without_eval_reward_the_policys_own_evaluations(stages: Stages, tmp_path: Path) -> None:
    kept, last = evaluation(4, estimate(0.2, 0.1, 0.3)), evaluation(8, estimate(-0.2, -0.3, -0.1), share=0.6)
    stages["policy"]["results"]["evaluations"] = {"first": evaluation(0, None), "last": last}
    chain = chain_of(stages, tmp_path)
    assert (chain.verdict("gold"), chain.verdict("openings")) == ("fails", "warning")
    stages["policy"]["results"]["evaluations"]["kept"] = kept
    chain = chain_of(stages, tmp_path)
    assert (chain.verdict("gold"), chain.verdict("openings")) == ("holds", "holds"), "of the weights that were kept"
    kept["functions_change"]["tone"] = None
    assert chain_of(stages, tmp_path).verdict("gold") == "not measured"


# ------------------------------------------------------------------------------------------------ length and openings


@pytest.mark.parametrize(
    ("lengths", "verdict"),
    [
        ([110, 110], "holds"),
        ([120, 120], "holds"),  # the bound itself
        ([121, 121], "warning"),  # length is beyond its bound, and the win is clear at equal length
        ([75, 75], "warning"),
        ([60, 160], "not clear"),
    ],
)
def test_length_beside_a_fifth_of_the_starts(stages: Stages, tmp_path: Path, lengths: list[int], verdict: str) -> None:
    items = [{"id": i, "p_a": 0.6, "length_a": lengths[i % 2], "length_b": 100} for i in range(40)]
    write_rows(tmp_path / "win-rate.items.jsonl", items)
    link = link_of("length", stages, tmp_path)
    ends = "at equal length it still wins 64 %" if verdict == "warning" else "from 512 characters"
    assert link.verdict == verdict and ends in link.sentence


def test_length_that_may_be_all_there_is_to_a_win_fails(stages: Stages, tmp_path: Path) -> None:
    items = [{"id": i, "p_a": 0.6, "length_a": 140, "length_b": 100} for i in range(40)]
    write_rows(tmp_path / "win-rate.items.jsonl", items)
    stages["win-rate"]["results"]["length_controlled"] = estimate(0.52, 0.44, 0.6)
    assert link_of("length", stages, tmp_path).verdict == "fails"


def test_length_without_items_has_no_interval(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "win-rate.items.jsonl").unlink()
    link = link_of("length", stages, tmp_path)
    assert link.verdict == "not clear" and link.sentence == "512 characters before, 420 after; no interval"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(0.05, 0.19, "holds"), (0.05, 0.2, "warning"), (0.3, 0.3, "holds"), (0.3, 0.31, "warning")],
)
def test_openings_warn_from_a_fifth_on_if_the_start_had_fewer(
    stages: Stages, tmp_path: Path, before: float, after: float, verdict: str
) -> None:
    openings = {
        side: {"share": share, "commonest": "a-very-long-word " * 3, "distinct": 9}
        for side, share in (("a", after), ("b", before))
    }
    stages["win-rate"]["results"]["openings"] = openings
    assert link_of("openings", stages, tmp_path).verdict == verdict
    stages["win-rate"]["results"]["prompts"] = 9
    assert link_of("openings", stages, tmp_path).verdict == "too few to tell"


# ------------------------------------------------------------------------------------------------ harm


def with_start_rate(stages: Stages, folder: Path, changed: tuple[int, int]) -> Stages:
    """100 prompts; of so many the policy's response is harmless and the start's is not, and the other way round."""
    better, worse = changed
    after, before = [1.0] * 100, [1.0] * 100
    before[:better], after[better : better + worse] = [0.0] * better, [0.0] * worse
    settings = stages["harmless"]["settings"] | {
        "candidates": str(folder / "before.jsonl"),
        "output": str(folder / "start.json"),
    }
    stages["start"] = {**stages["harmless"], "settings": settings}
    for name, rates in (("harmless", after), ("start", before)):
        rows = [{"id": f"p{i}", "prompt_key": f"p{i}", "sample": 0, "p_harmless": p} for i, p in enumerate(rates)]
        write_rows(folder / f"{name}.items.jsonl", rows)
    return stages


@pytest.mark.parametrize(("changed", "verdict"), [((20, 0), "holds"), ((3, 3), "holds"), ((0, 20), "fails")])
def test_harm_beside_the_start(stages: Stages, tmp_path: Path, changed: tuple[int, int], verdict: str) -> None:
    link = link_of("harmless", with_start_rate(stages, tmp_path, changed), tmp_path)
    assert link.verdict == verdict and "points" in link.sentence
    assert "agrees with people on 66.0 %" in link.more


@pytest.mark.parametrize("changed", [(20, 0), (0, 20)])
def test_a_coin_finds_neither_harm_nor_its_absence(stages: Stages, tmp_path: Path, changed: tuple[int, int]) -> None:
    stages["alignment"]["results"]["accuracy"] = estimate(0.5, 0.45, 0.55)
    link = link_of("harmless", with_start_rate(stages, tmp_path, changed), tmp_path)
    assert link.verdict == "not clear" and "no better than a coin" in link.sentence


def test_what_the_judge_of_harm_is_worth_is_asked_of_the_same_question(stages: Stages, tmp_path: Path) -> None:
    with_start_rate(stages, tmp_path, (20, 0))
    for name in ("harmless", "start"):
        stages[name]["settings"] |= {"constitution": "harmlessness", "principles": ["all"]}
    unknown = link_of("harmless", stages, tmp_path)
    assert "on harm was not measured" in unknown.more
    assert unknown.verdict == "not clear" and unknown.sentence.endswith("judge not measured")
    stages["start"]["settings"] |= {"principles": ["one"]}
    link = link_of("harmless", stages, tmp_path)
    assert link.verdict == "not clear" and "the start not measured" in link.sentence


def test_harm_without_items_or_without_stages(stages: Stages, tmp_path: Path) -> None:
    with_start_rate(stages, tmp_path, (20, 0))
    (tmp_path / "start.items.jsonl").unlink()
    link = link_of("harmless", stages, tmp_path)
    assert link.verdict == "not clear" and "no interval" in link.sentence
    del stages["harmless"]
    assert link_of("harmless", stages, tmp_path).verdict == "not measured"


# ------------------------------------------------------------------------------------------------ the whole chain


def test_a_run_of_labels_alone_has_no_links_of_a_policy(stages: Stages, tmp_path: Path) -> None:
    kept = {name: stages[name] for name in ("candidates", "preferences", "alignment")}
    chain = chain_of(kept, tmp_path)
    assert [link.name for link in chain.links] == ["judge"] and chain.policy == ""
    assert chain_of({}, tmp_path).links == ()
    assert "nothing to compare yet" in next(summary_lines(run_of({}, tmp_path)))


def test_a_matrix_has_a_chain_for_each_policy(stages: Stages, tmp_path: Path) -> None:
    for seed in (0, 1):
        policy, after = str(tmp_path / f"policy.seed={seed}"), str(tmp_path / f"after.seed={seed}.jsonl")
        stages[f"policy.seed={seed}"] = stages["policy"] | {
            "settings": stages["policy"]["settings"] | {"output": policy}
        }
        stages[f"after.seed={seed}"] = stages["after"] | {"settings": {"model": policy, "output": after}}
        settings = stages["win-rate"]["settings"] | {"a": after}
        results = stages["win-rate"]["results"] | {
            "win_rate": estimate(0.5 + 0.2 * seed, 0.4 + 0.2 * seed, 0.6 + 0.2 * seed)
        }
        stages[f"win-rate.seed={seed}"] = stages["win-rate"] | {"settings": settings, "results": results}
    del stages["policy"], stages["win-rate"]
    found = chains(run_of(stages, tmp_path))
    assert [(chain.policy, chain.verdict("win rate")) for chain in found] == [
        ("policy.seed=0", "not clear"),
        ("policy.seed=1", "holds"),
    ]
    assert "policy.seed=0 (1 of 2 policies)" in next(summary_lines(run_of(stages, tmp_path)))
    assert headline(chains(run_of(stages, tmp_path))).startswith("policy.seed=0: No effect")
    (tmp_path / "summary.json").write_text(json.dumps({"name": "m", "stages": stages}))
    page = write_report(tmp_path, tmp_path / "report.html").read_text("utf-8")
    assert page.count('<ol class="chain">') == 2


def test_the_last_policy_is_the_one_that_no_other_starts_from(stages: Stages, tmp_path: Path) -> None:
    settings = stages["policy"]["settings"] | {"output": str(tmp_path / "second"), "model": str(tmp_path / "policy")}
    stages["second"] = stages["policy"] | {"settings": settings}
    assert chain_of(stages, tmp_path).policy == "second"


def test_the_chain_in_every_form_of_the_report(stages: Stages, tmp_path: Path) -> None:
    chain = chain_of(stages, tmp_path)
    found = json.loads(write_report(tmp_path, tmp_path / "report.json").read_text("utf-8"))["chain"]
    assert [link["verdict"] for link in found[0]["links"]] == [link.verdict for link in chain.links]
    page = write_report(tmp_path, tmp_path / "report.html").read_text("utf-8").split("What was found")[0]
    text = write_report(tmp_path, tmp_path / "report.md").read_text("utf-8")
    for link in chain.links:
        assert f"| {link.title} | {link.verdict} |" in text and f"<strong>{link.title}</strong>" in page


def test_the_terminals_summary_fits_eighty_columns_and_ten_lines(stages: Stages, tmp_path: Path) -> None:
    with_start_rate(with_gold(stages, tmp_path, estimate(0.1, -0.1, 0.3)), tmp_path, (3, 3))
    lines = list(summary_lines(run_of(stages, tmp_path)))
    assert len(lines) == 8 and max(map(len, lines)) <= 80
    assert lines[0] == "demo: 3 of 7 checks hold" and lines[3].startswith("  ✓ Win rate ")
    plain = list(summary_lines(run_of(stages, tmp_path), "ascii"))
    assert "".join(plain).isascii() and plain[3].startswith("  + Win rate ")


def test_the_report_is_named_where_there_is_one(stages: Stages, tmp_path: Path) -> None:
    assert report_path(run_of(stages, tmp_path)) is None
    added(stages, "report", "report", tmp_path, {"report": "runs/demo/report.html"})
    assert report_path(run_of(stages, tmp_path)) == "runs/demo/report.html"


def test_no_sentence_is_longer_than_its_line_however_large_the_numbers(stages: Stages, tmp_path: Path) -> None:
    for name, key in (("alignment", "accuracy"), ("win-rate", "win_rate")):
        for low, high in ((0.502, 0.6), (0.4, 0.498), (0.4, 0.6)):
            stages[name]["results"] |= {
                key: estimate((low + high) / 2, low, high, 99_999),
                "n": 99_999,
                "prompts": 99_999,
            }
            assert chain_of(stages, tmp_path).verdict("judge") != "not measured"
            assert max(len(link.sentence) for link in chain_of(stages, tmp_path).links) <= 60
    gold = with_gold(stages, tmp_path, estimate(-1234.5, -2345.6, 345.6, 9999), reward_function="a.py:" + "n" * 99)
    assert len(link_of("gold", gold, tmp_path).sentence) <= 60


# ------------------------------------------------------------------------------------------------ wording


def test_a_bound_is_not_rounded_onto_the_value_of_no_effect() -> None:
    assert percents(estimate(0.7, 0.6, 0.8), 0.5) == ("70 %", "[60, 80]")
    assert percents(estimate(0.55, 0.502, 0.6), 0.5) == ("55.0 %", "[50.2, 60.0]")
    assert percents(estimate(0.45, 0.4, 0.496), 0.5) == ("45.0 %", "[40.0, 49.6]")
    assert percents(estimate(0.55, 0.498, 0.6), 0.5) == ("55 %", "[50, 60]"), "it holds 50 %, and says so"
    assert percents(estimate(0.75, 0.5, 1.0), 0.5) == ("75 %", "[50, 100]")


def test_a_change_has_the_digits_that_its_interval_needs() -> None:
    assert signed(estimate(0.0012, -0.0003, 0.0027)) == ("+0.0012", "[-0.0003, +0.0027]")
    assert signed(estimate(0.0, 0.0, 0.0)) == ("+0.00", "[+0.00, +0.00]")
    assert signed({"value": 1.25, "low": None, "high": None}) == ("+1.25", "")
