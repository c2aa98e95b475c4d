"""What belongs to a checkpoint: names, pad token, head, precision, and the files that count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import families
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.train import RewardModelConfig
from rlaif_cli.data.messages import Message
from rlaif_cli.engines.transformers import TransformersEngine
from rlaif_cli.errors import ModelError, RlaifWarning
from rlaif_cli.models import precision
from rlaif_cli.models.metadata import check_reward_model, check_weights, stored_tensors
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train import rollout
from rlaif_cli.train.nn import precision as training_precision
from rlaif_cli.train.nn.heads import load_policy, load_reward_model, new_reward_model, response_logprobs, rewards
from rlaif_cli.train.nn.packing import Group, pack
from rlaif_cli.train.reward_function import PromptRow
from rlaif_cli.train.reward_model import train_reward_model
from rlaif_cli.train.reward_source import RewardModelScorer
from rlaif_cli.train.rollout import policy_weights
from rlaif_cli.train.runtime import export

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = [Message(role="user", content="Name a red fruit.")]
TURNS = [*(message.model_dump() for message in PROMPT), {"role": "assistant", "content": "A cherry."}]


def changed(folder: Path, file: str, **fields: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")
    return folder


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copied"))


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "llama", "gpt2"])
def test_weights_are_handed_over_by_the_names_of_the_checkpoint(family: str, tmp_path: Path) -> None:
    """Experts lie stacked in a model of transformers 5, and one by one in its files."""
    families.save(family, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    sent = dict(policy_weights(load_policy(tmp_path)))
    assert sent.keys() - saved.keys() <= {"lm_head.weight"}, "more than a tied output layer"
    assert not saved.keys() - sent.keys()
    for name, tensor in saved.items():
        assert torch.equal(sent[name], tensor), name


def test_the_experts_of_one_layer_are_converted_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is split over processes is whole in no place, and so must not be gathered at once."""
    gathered = []
    monkeypatch.setattr(rollout, "full_tensor", lambda tensor: gathered.append(tensor.numel()) or tensor)
    model = load_policy(families.save("mixtral", tmp_path))
    weights = policy_weights(model)
    while "layers.0." not in next(weights)[0]:
        pass
    assert sum(gathered) < 0.5 * sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------ what is refused


def adapter(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}", "utf-8")
    return folder


def untied(folder: Path) -> Path:
    return changed(folder, "config.json", tie_word_embeddings=False)


def misshapen(folder: Path) -> Path:
    return changed(folder, "config.json", intermediate_size=96)


def test_an_adapter_beside_a_whole_model_is_refused(copied: Path) -> None:
    with pytest.raises(ModelError, match=r"a full model and a LoRA adapter \(adapter_config.json\)"):
        resolve_model(str(adapter(copied)))


@pytest.mark.parametrize(
    ("damage", "said"), [(untied, "lacks weights: lm_head.weight"), (misshapen, "do not have the shape"), (Path, None)]
)
def test_missing_weights_are_found_without_loading_any(copied: Path, damage: Any, said: str | None) -> None:
    damage(copied)
    if said is None:
        check_weights(copied)
        return
    with pytest.raises(ModelError, match=said):
        check_weights(copied)


def test_vllm_refuses_missing_weights_before_it_starts(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif_cli.engines import vllm

    monkeypatch.setattr(vllm, "_import_vllm", lambda: pytest.fail("vLLM was started"))
    with pytest.raises(ModelError, match=r"lacks weights: lm_head.weight"):
        vllm.VllmEngine(untied(copied))


def test_kinds_that_transformers_does_not_know_are_left_to_the_engine(copied: Path) -> None:
    check_weights(changed(copied, "config.json", model_type="of_next_year"))


def save_classifier(folder: Path, **options: Any) -> Path:
    AutoModelForSequenceClassification.from_pretrained(folder, **options).save_pretrained(folder)
    return folder


def test_a_classifier_with_two_labels_is_no_reward_model(copied: Path) -> None:
    with pytest.raises(ModelError, match="a reward model has one label, but this one has 2"):
        check_reward_model(save_classifier(copied, num_labels=2))


@pytest.mark.parametrize("kind", ["Bert", "DebertaV2", "ModernBert", "XLMRoberta"])
def test_an_encoder_is_refused_by_its_config(kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(num_labels=1)
    config.architectures = [f"{kind}ForSequenceClassification"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads text in both directions"):
        check_reward_model(tmp_path)


# ------------------------------------------------------------------------------------------------ reward models


@pytest.fixture
def trained(tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]) -> Callable[[Path], Path]:
    """A reward model of a few steps on the base in a folder."""
    row = {"prompt": "Name a red fruit.", "chosen": "A cherry.", "rejected": "A lime.", "p_chosen": 0.9}
    rows = write_jsonl("prefs.jsonl", [row | {"id": str(index)} for index in range(4)])

    def train(base: Path) -> Path:
        options = {"eval_fraction": 0, "precision": "fp32", "output": str(tmp_path / "rm")}
        train_reward_model(RewardModelConfig(preferences=rows, model=str(base), **options))
        return tmp_path / "rm"

    return train


def pad_is_the_end(folder: Path) -> Path:
    eos = json.loads((folder / "config.json").read_text("utf-8"))["eos_token_id"]
    changed(folder, "config.json", pad_token_id=eos)
    return changed(folder, "tokenizer_config.json", pad_token="<|im_end|>")


def test_a_saved_reward_model_is_read_alike_by_transformers(copied: Path, trained: Any) -> None:
    """docs/interop.md's recipe: with the end of a turn as its pad token, transformers reads the token before it."""
    folder = trained(pad_is_the_end(copied))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False).rstrip("\n")
    theirs = transformers.pipeline("text-classification", model=str(folder), function_to_apply="none")(text)[0]["score"]
    scorer = RewardModelScorer(folder, "fp32", 1000)
    ours = scorer.score([PromptRow("p", PROMPT)], [["A cherry."]]) * scorer.std + scorer.mean
    assert tokenizer.pad_token == "<|pad|>" and theirs == pytest.approx(float(ours), abs=1e-4)


def test_with_no_token_to_spare_there_is_no_pad_and_it_is_said(copied: Path, trained: Any) -> None:
    pad_is_the_end(copied)
    file = copied / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace("<|pad|>", "<|other|>"), "utf-8")
    with pytest.warns(RlaifWarning, match="no pad token other than"):
        folder = trained(copied)
    assert json.loads((folder / "config.json").read_text("utf-8"))["pad_token_id"] is None


@pytest.mark.parametrize("pad", ["its own", "the end of a turn"])
def test_a_reward_model_of_another_tool_is_read_as_it_was_trained(copied: Path, pad: str) -> None:
    """At the last token of the whole conversation that is no pad: here the newline after the turn, or that token."""
    if pad == "the end of a turn":
        pad_is_the_end(copied)
    torch.manual_seed(1)
    save_classifier(copied, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(copied)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = AutoModelForSequenceClassification.from_pretrained(copied)(ids).logits[0, 0]
    found = RewardModelScorer(copied, "fp32", 1000).score(
        [PromptRow("p", PROMPT)], [["A cherry.", "A lime.", "A cherry."]]
    )[0]
    torch.testing.assert_close(found[0], theirs, atol=1e-5, rtol=1e-5)
    assert found[2] == found[0] != found[1]


def test_the_head_of_a_reward_model_is_fp32_in_computing_and_in_the_file(tiny: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(half)
    model = new_reward_model(half, seed=3, dtype=torch.bfloat16)
    model.config.rlaif = {"reward_mean": 0.0, "reward_std": 1.0}
    head = model.score.weight.clone()
    export.save_checkpoint(model, half, tmp_path / "rm")
    saved = load_file(tmp_path / "rm" / "model.safetensors")
    assert torch.equal(saved.pop("score.weight"), head) and {t.dtype for t in saved.values()} == {torch.bfloat16}
    loaded = load_reward_model(tmp_path / "rm", torch.bfloat16)
    assert torch.equal(loaded.score.weight, head) and loaded.model.embed_tokens.weight.dtype == torch.bfloat16
    batch = pack([Group([5, 6, 7], [[8, 9], [10]])])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reward = rewards(loaded, batch)
    assert reward.dtype == torch.float32 and not torch.equal(reward, reward.bfloat16().float())


# ------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("field", ["dtype", "torch_dtype", None])
def test_a_model_is_saved_in_the_dtype_of_its_base(tiny: Path, tmp_path: Path, field: str | None) -> None:
    """Which transformers 4 called torch_dtype, and some configs do not name."""
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(base)
    config = json.loads((base / "config.json").read_text("utf-8"))
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config | ({field: "float16"} if field else {})), "utf-8")
    export.save_checkpoint(load_policy(base), base, tmp_path / "saved")
    assert {t.dtype for t in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize(("precision", "bf16", "dtype"), [("auto", False, "float32"), ("auto", True, "auto")])
def test_an_fp32_trainer_samples_from_an_fp32_engine(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, precision: str, bf16: bool, dtype: str
) -> None:
    monkeypatch.setattr(training_precision, "has_bf16", lambda: bf16)
    opened: dict[str, Any] = {}
    monkeypatch.setattr(rollout, "open_engine", lambda name, path, **options: opened.update(options))
    options = {"reward_model": ["rm"], "engine": "vllm", "precision": precision}
    rollout.RolloutEngine(PPOConfig(prompts="-", model=str(tiny), output="-", **options), None, tiny, 10)
    assert opened["dtype"] == dtype


@pytest.mark.parametrize("bf16", [False, True])
def test_an_engine_emulates_no_bf16_unless_it_is_asked_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda: bf16)
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(half)
    if not torch.cuda.is_available():
        own = torch.bfloat16 if bf16 else torch.float32
        assert TransformersEngine(half)._model.dtype == own
    assert TransformersEngine(half, dtype="bfloat16")._model.dtype == torch.bfloat16


def test_half_precision_is_tried_in_fp32(tiny: Path, tmp_path: Path) -> None:
    """Its own rounding would hide faults; and the weights are what they were."""
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(half)
    stored = load_file(half / "model.safetensors")
    model = load_policy(half, torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, stored[name])
    assert torch.isfinite(response_logprobs(model, pack([Group([5, 6], [[7, 8]])]), 1.0)).all()


def test_stray_tensors_do_not_make_a_head(copied: Path) -> None:
    save_file({"other.weight": torch.zeros(1)}, copied / "stray.safetensors")
    assert stored_tensors(copied, "score.") == {} and ChatTokenizer(copied)
