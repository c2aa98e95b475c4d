"""Every kind of model that transformers knows is trained right, or refused: packed = plain, log-probs = its own.

docs/models.md says which kind is which; the tests hold that table. `python tests/families.py` prints it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

import families
from families import FAMILIES
from helpers import ROOT
from rlaif_cli.config.train import SftConfig
from rlaif_cli.errors import ModelError
from rlaif_cli.train.nn.heads import load_policy, new_reward_model, packs, response_logprobs, rewards
from rlaif_cli.train.nn.packing import Group, pack
from rlaif_cli.train.runtime import optim
from rlaif_cli.train.runtime.optim import sharded

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = ROOT / "docs" / "models.md"
# One of each quirk; all others are slow.
QUICK = ("llama", "gpt2", "opt", "gemma2", "gpt_oss", "granite", "cohere", "mixtral", "deepseek_v3", "lfm2", "mamba2")
QUICK += ("qwen3_next", "stablelm", "bloom", "bert-generation")


def table() -> dict[str, str]:
    """Family -> what docs/models.md says of it."""
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {family: said.strip() for family, said in rows}


def groups() -> list[Group]:
    """Longer than every window, of other lengths than what a model is tried with when it is loaded."""
    draw = torch.Generator().manual_seed(7)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, families.VOCABULARY, (count,), generator=draw).tolist()

    return [Group(tokens(11), [tokens(3), tokens(14)]), Group(tokens(2), [tokens(9), tokens(1)])]


def sequences() -> Iterator[tuple[list[int], int]]:
    """(tokens, how many of them are the prompt)."""
    return (([*group.prompt, *response], len(group.prompt)) for group in groups() for response in group.responses)


@pytest.fixture(params=[pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAMILIES])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    """A checkpoint of the family, with dropout on."""
    if (said := table()[family]).startswith("not tried"):
        pytest.skip(said)
    return families.save(family, tmp_path)


def own_forward(model: Any) -> Any:
    """By the attention that the authors wrote, where there are several."""
    model.eval()
    if model._can_set_attn_implementation():
        model.set_attn_implementation("eager")
    return model.forward


def own_logprobs(forward: Any) -> torch.Tensor:
    found = []
    for ids, prompt in sequences():
        logits = forward(input_ids=torch.tensor([ids]), use_cache=False).logits[0, prompt - 1 : -1].float()
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(ids[prompt:])[:, None])[:, 0])
    return torch.cat(found)


def gradients(model: Any, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_log_probs_are_the_models_own(family: str, folder: Path) -> None:
    said = table()[family]
    if said.startswith("refused"):
        with pytest.raises(ModelError) as refused:
            load_policy(folder)
        assert said == f"refused: {families.reason(refused.value)}"
        return
    model = load_policy(folder).train()
    assert said == ("packed" if packs(model) else "one at a time")
    batch = pack(groups())
    first, second = (response_logprobs(model, batch, 1.0)[batch.response_mask] for _ in range(2))
    assert torch.equal(first, second), "random in training"
    trained = gradients(model, first.mean())
    expected = own_logprobs(own_forward(model))
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=1e-4)
    for name, gradient in gradients(model, expected.mean()).items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            trained[name], gradient, atol=1e-3 * scale + 1e-6, rtol=1e-2, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_rewards_are_the_models_own(family: str, folder: Path) -> None:
    try:
        model = new_reward_model(folder, seed=0).train()
    except ModelError as error:
        refused = table()[family].startswith("refused")
        assert refused or re.search("no reward model of this kind|is not a single linear layer", str(error))
        return
    batch = pack(groups())
    with torch.no_grad():
        found = rewards(model, batch).flatten()
        forward = own_forward(model)
        expected = [forward(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 0] for ids, _ in sequences()]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_an_encoder_is_refused_however_little_its_small_weights_show(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads text in both directions"):
        load_policy(tmp_path)


def test_a_model_that_reads_one_sequence_at_a_time_is_not_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes would ask for its blocks unequally often, and wait for each other for ever."""
    model = load_policy(families.save("mamba2", tmp_path))
    monkeypatch.setattr(optim, "world_size", lambda: 2)
    with pytest.raises(ModelError, match=r"one sequence at a time, which cannot be split") as refused:
        sharded(model, SftConfig(records="-", model=str(tmp_path), output="-"))
    assert refused.value.hint == "use one process, or --lora-rank"


def test_the_page_has_every_family() -> None:
    assert [*table()] == sorted(FAMILIES)
    verdicts = [said.partition(":")[0] for said in table().values()]
    assert verdicts.count("packed") >= 80 and verdicts.count("one at a time") >= 45
    assert set(verdicts) == {"packed", "one at a time", "refused", "not tried"}
