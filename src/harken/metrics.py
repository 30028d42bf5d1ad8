"""What every number in metrics.jsonl means; `docs/metrics.md` says it at greater length, and a test keeps them equal.

Means over tokens are over completion tokens only, with one global denominator, so that neither padding nor
microbatches change a number.
"""

DEFINITIONS: dict[str, str] = {
    "step": "optimizer step (sft, reward) or iteration (ppo), counted from 1",
    "time_s": "seconds the step took",
    "tokens_per_s_train": "tokens learned from per second (ppo: completion tokens times epochs)",
    "tokens_per_s_sample": "completion tokens sampled and read by policy, reference and critic per second",
    "tokens_per_s_score": "completion tokens the reward scored per second",
    "padding_waste": "share of computed positions that held no token",
    "lr": "learning rate of the (policy's) optimizer",
    "grad_norm": "global gradient norm before clipping",
    "loss": "mean loss: per completion token (sft), per weighted pair (reward)",
    "heldout_loss": "mean loss per completion token of held-out demonstrations",
    "accuracy": "share of the batch's pairs in which the chosen side scored higher, ties half",
    "score_margin": "mean of chosen minus rejected score, raw score units",
    "score_mean": "mean score of the step's completions, before clip and penalty",
    "score_std": "spread of those scores",
    "reward_mean": "mean over completions of the summed per-token rewards: penalized score minus KL cost",
    "kl_sequence": "mean over completions of sum of log pi - log pi_ref (k1), nats",
    "kl_token": "the same per token, nats",
    "kl_k3": "mean over completions of the summed k3 estimator, never negative, nats",
    "kl_coef": "coefficient of the KL cost in this step",
    "entropy": "mean entropy of the policy's next-token distribution before the update, nats",
    "length_mean": "mean completion length, tokens",
    "stop_fraction": "share of completions that ended with a stop token",
    "sampler_mismatch": "mean |sampler - scorer| log-probability of sampled tokens, nats",
    "policy_loss": "clipped policy loss, mean over the update's minibatches",
    "value_loss": "clipped value loss, mean over the update's minibatches",
    "clip_fraction": "share of tokens whose ratio the clip made ineffective",
    "value_clip_fraction": "share of tokens whose value the value clip made ineffective",
    "ratio": "mean probability ratio of new to old policy",
    "approx_kl": "half the mean squared log ratio, over the update's minibatches, nats a token",
    "approx_kl_last": "the same on the update's last minibatch, which the early stop looks at",
    "explained_variance": "1 - Var(return - value) / Var(return), of the critic before the update",
    "epochs_run": "epochs before the early stop",
    "grad_norm_policy": "global gradient norm of the policy before clipping, mean over minibatches",
    "grad_norm_critic": "global gradient norm of the critic before clipping, mean over minibatches",
}
