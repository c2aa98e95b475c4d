"""The mathematics of reward training and PPO: pure tensor functions, each with the paper of its formula."""

from rlaif_cli.train.math.advantages import (
    gae,
    group_normalized_advantage,
    leave_one_out_baseline,
    remove_length_effect,
    truncated_importance_weights,
)
from rlaif_cli.train.math.kl import AdaptiveKLController, FixedKLController, KLController, kl_estimate
from rlaif_cli.train.math.logprobs import entropy_from_logits, gather_logprobs
from rlaif_cli.train.math.losses import (
    binary_entropy,
    direct_reward,
    expected_score,
    ppo_policy_loss,
    ppo_value_loss,
    soft_pairwise_loss,
)
from rlaif_cli.train.math.masked import explained_variance, last_token_index, masked_mean, masked_var, masked_whiten

__all__ = [
    "AdaptiveKLController",
    "FixedKLController",
    "KLController",
    "binary_entropy",
    "direct_reward",
    "entropy_from_logits",
    "expected_score",
    "explained_variance",
    "gae",
    "gather_logprobs",
    "group_normalized_advantage",
    "kl_estimate",
    "last_token_index",
    "leave_one_out_baseline",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "ppo_policy_loss",
    "ppo_value_loss",
    "remove_length_effect",
    "soft_pairwise_loss",
    "truncated_importance_weights",
]
