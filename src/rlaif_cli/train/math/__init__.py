"""The maths of reward-model training and PPO: pure functions on tensors, each with its shapes and its source.

Conventions of every function here:

- ``B`` sequences, ``T`` positions, ``V`` vocabulary entries; ``P`` prompts with ``n`` samples each.
- Log-probabilities, KL and entropy are in nats.
- A mask (bool, int or float) is nonzero at real positions. Values at masked positions, even NaN and infinity, affect
  neither a result nor a gradient: they are replaced before any arithmetic, never multiplied by zero.
- Results are fp32 (fp64 for fp64 input), also for bf16 input: sums over thousands of tokens do not fit in 8 bits.
- Scalars for logging are detached 0-d tensors, so that the caller chooses when to wait for them. For the same reason a
  mask without a real position is an error only on a CPU: on a GPU, checking it would synchronise the device several
  times per micro-batch. There 0 / 0 gives NaN, which `optim.clip_and_step` refuses.

The formulas are those of the papers; where implementations differ, the docstring names the one followed.
"""

from rlaif_cli.train.math.advantages import (
    gae,
    group_normalized_advantage,
    leave_one_out_baseline,
    remove_length_effect,
    truncated_importance_weights,
)
from rlaif_cli.train.math.kl import AdaptiveKLController, FixedKLController, KLController, kl_estimate
from rlaif_cli.train.math.logprobs import gather_logprobs
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
