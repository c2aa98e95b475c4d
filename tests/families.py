"""Tiny random models of every causal-LM family that transformers knows.

A family's own default config is shrunk by the names of its fields, so that a new family is in the matrix as soon as
transformers has it; `EXTRA` holds what names do not say. Whatever makes families differ is kept and made visible:
windows are shorter than the sequences, factors on logits are not 1, dropout is on, weights are large.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlaif_cli.errors import ModelError

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 64
WINDOW = 5

# The first pattern that a field's whole name matches gives its value; fields that match none stay as they are.
RULES: tuple[tuple[re.Pattern[str], Any], ...] = tuple(
    (re.compile(pattern), value)
    for pattern, value in (
        (r"vocab_size(_per_layer_input)?|decoder_vocab_size", VOCABULARY),
        (r"(pad|sep|cls|eod|boi|eoi|boa|eoa|image|video|audio)_token_(id|index)|decoder_start_token_id", 0),
        (r"(vision_start|vision_end)_token_id|eoa_token_index", 0),
        (r"bos_token_id", 1),
        (r"eos_token_id|forced_eos_token_id", 2),
        (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length", 128),
        (r"original_max_position_embeddings", 64),
        (r"hidden_size|n_embd|d_model|embedding_size|backbone_hidden_size|emb_dim|dim_model_base|lru_width", 32),
        (r"attention_hidden_size", 32),
        (r"num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_layers_per_stack", 4),
        (r"num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|swa_num_attention_heads", 4),
        (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads|kv_n_heads", 2),
        (r"(v|qk_nope|qk_rope|swa_|index_|global_|linear_key_|linear_value_|linear_)?head_dim|dim_head|kv_channels", 8),
        (r"v_head_dim|qk_nope_head_dim|qk_rope_head_dim|swa_v_head_dim|d_kv", 8),
        (r"qk_head_dim", 16),
        (r"(q|kv|o)_lora_rank|laurel_rank|gated_norm_rank|adapter_rank", 8),
        (r"index_n_heads|linear_num_(key|value)_heads|linear_num_heads", 2),
        (r"index_topk", 4),
        (r"rotary_dim|d_rel", 8),
        (r".*intermediate_size(_mlp)?|.*ffn_dim|dim_ff|dff|.*ffn_hidden_size|n_inner|d_ff", 48),
        (r"hidden_size_per_layer_input", 8),
        (r"(moe_)?num_(local_)?experts|n_routed_experts|moe_num_experts|num_blocks_experts", 4),
        (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts", 2),
        (r"(n|num|moe_num)_shared_experts", 1),
        (r"n_group|num_expert_group|topk_group", 1),
        (r"zero_expert_num", 2),
        (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|num_kv_shared_layers", 1),
        (r"moe_layer_end_index", -1),
        (r"sliding_window(_size)?|attention_window_size|window_size|keep_window_size", WINDOW),
        (r"local_attention", 2 * WINDOW),
        (r"attention_chunk_size|floor_scale", 8),
        (r"max_window_layers", 2),
        (r"(mamba_|ssm_)?(d_state|state_size)", 8),
        (r"mamba_(n|num)_heads|n_mamba_heads", 4),
        (r"mamba_d_head|mamba_head_dim", 16),
        (r"mamba_d_ssm", 64),
        (r"(mamba_)?n_groups", 1),
        (r"time_step_rank|mamba_dt_rank", 4),
        (r"(mamba_)?chunk_size|block_size|index_block_size", 8),
        (r"router_jitter_noise|input_jitter_noise", 0.1),
        (r"logits_scaling|logit_scale|lm_head_multiplier|logits_mup_width_multiplier", 3.0),
        (r"residual_multiplier|embedding_multiplier|scale_emb|scale_depth", 1.5),
        (r"(final|attn)_logit_softcapping", 3.0),
        (r"(?!.*(summary|classifier)).*(dropout|pdrop|drop_rate|layerdrop)(_p|_prob)?", 0.2),
        (r"initializer_range|init_std", 0.2),
        (r"pretraining_tp|num_nextn_predict_layers|patch_size", 1),
    )
)

# By family: fields that names do not settle, mostly lists with an entry a layer.
EXTRA: dict[str, dict[str, Any]] = {
    "bert": {"is_decoder": True},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        }
    },
    "dbrx": {
        "attn_config": {"attn_pdrop": 0.2, "kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "dots1": {"n_shared_experts": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
        "attention_hidden_size": 64,
    },
    "diffllama": {"attention_dropout": 0.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"head_dim": 16, "num_heads": 4},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "zaya": {"num_experts_per_tok": 1},
}
_GEMMA4 = {"per_layer_config": {}, "layer_types": ["sliding_attention", "full_attention"] * 2, "global_head_dim": 8}
_QWEN4 = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4}
_QWEN4 |= {"indexer_compress_ratio": 2, "hc_lowrank": 8}
EXTRA |= {"gemma4_text": _GEMMA4, "gemma4_unified_text": _GEMMA4, "qwen4_exp_text": _QWEN4}
EXTRA |= {name: {"text_config": EXTRA[f"{name}_text"]} for name in ("gemma4", "gemma4_unified", "qwen4_exp")}


def shrunk(config: Any) -> dict[str, Any]:
    """The fields of a default config, made small; sub-configs too."""
    found: dict[str, Any] = {}
    fields = {name: value for name, value in config.to_dict().items() if name != "per_layer_config"}
    for name, value in fields.items():
        if isinstance(value, dict) and hasattr(own := getattr(config, name), "to_dict"):
            found[name] = shrunk(own)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            small = next((small for pattern, small in RULES if pattern.fullmatch(name)), None)
            if small is not None:
                found[name] = small
    if "kv_lora_rank" in fields:  # latent attention has keys for every head
        found["num_key_value_heads"] = found["num_attention_heads"]
    for name in ("head_dim", "num_key_value_heads", "num_experts_per_tok", "n_routed_experts", "topk_group", "n_group"):
        if name in fields and fields[name] is None:  # to be given by the checkpoint, or derived from what is small now
            found[name] = next(small for pattern, small in RULES if pattern.fullmatch(name))
    return found


def tiny_config(family: str, **more: Any) -> Any:
    kind = CONFIG_MAPPING[family]
    return kind(**_merged(_merged(shrunk(kind()), EXTRA.get(family, {})), more))


def _merged(fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`more` wins; the fields of sub-configs are merged in turn."""
    both = {name: _merged(fields[name], more[name]) for name in fields.keys() & more.keys() if name.endswith("_config")}
    return fields | more | both


def tiny_model(family: str, **more: Any) -> Any:
    """Equal at every call."""
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(tiny_config(family, **more))


def save(family: str, folder: Path, **more: Any) -> Path:
    """A checkpoint of the family, without a tokenizer.

    Args:
        more: fields of its config.
    """
    model = tiny_model(family, **more)
    model.generation_config = transformers.GenerationConfig()  # a default one may name tokens that are not there
    model.save_pretrained(folder)
    return folder


def verdict(family: str, folder: Path) -> str:
    """What docs/models.md says of the family."""
    from rlaif_cli.train.nn.heads import load_policy, packs

    try:
        save(family, folder)
    except Exception as error:
        return f"not tried: a small one cannot be built ({type(error).__name__})"
    try:
        return "packed" if packs(load_policy(folder)) else "one at a time"
    except ModelError as error:
        return f"refused: {reason(error)}"


def reason(error: ModelError) -> str:
    """Why a family is refused, without the folder and what a library raised."""
    said = re.sub(r"^(this kind of model \(\S+\)|the model) ", "", error.what.partition("\n")[0])
    return re.sub(r": \w*Error: .*", "", said)


if __name__ == "__main__":
    import tempfile

    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or sorted(FAMILIES):
        with tempfile.TemporaryDirectory() as folder:
            print(f"| `{name}` | {verdict(name, Path(folder))} |", flush=True)
