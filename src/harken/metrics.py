"""What every number in metrics.jsonl means; `docs/metrics.md` says it at greater length, and a test keeps them equal.

Means over tokens are over completion tokens only, with one global denominator, so that neither padding nor
microbatches change a number.
"""

DEFINITIONS: dict[str, str] = {
    "step": "Optimizer step (sft, reward, dpo and its kin, ilql), iteration (ppo, online-dpo) or round (rft), counted "
    "from 1.",
    "time_s": "Seconds the step took.",
    "tokens_per_s_train": "Tokens learned from per second (ppo: completion tokens times epochs).",
    "tokens_per_s_sample": "Completion tokens sampled and read by policy, reference and critic per second.",
    "tokens_per_s_score": "Completion tokens the reward scored per second.",
    "share_of_peak_train": "Share of the machine's matrix rate (of a matrix product, measured at the start) that "
    "training reached; padding and what is computed twice do not count.",
    "share_of_peak_sample": "The same of sampling and of reading by policy, reference and critic.",
    "peak_memory_bytes": "Most bytes in use so far: resident set of the process, on a GPU what torch allocated there.",
    "padding_waste": "Share of computed positions that held no token.",
    "lr": "Learning rate of the (policy's) optimizer.",
    "grad_norm": "Global gradient norm before clipping.",
    "loss": "Mean loss: per completion token (sft, ilql; rft: of the round's last step), per weighted pair (reward, "
    "dpo).",
    "heldout_loss": "Mean loss of what was held out: per completion token (sft), per weighted pair (dpo and its kin).",
    "heldout_accuracy": "`accuracy` of held-out pairs (dpo and its kin).",
    "accuracy": "Share of the batch's pairs in which chosen scored higher (dpo and its kin: by implicit reward), ties "
    "half; kto: share of completions on the side of `kl_baseline` that their label says.",
    "score_margin": "Mean of chosen minus rejected score, raw score units.",
    "reward_margin": "Mean implicit reward of the chosen side minus that of the rejected one (dpo and its kin).",
    "chosen_reward": "Mean implicit reward of the chosen sides (kto: of good completions, 0 if a step has none). For "
    "dpo: beta times log pi - log pi_ref, summed over tokens; for the other losses see docs/preference-losses.md.",
    "rejected_reward": "The same of the rejected sides (kto: of bad completions).",
    "chosen_logprob": "Mean log-probability of the chosen completions under the policy, nats; watch whether it falls.",
    "rejected_logprob": "The same of the rejected completions.",
    "kl_baseline": "What kto measures completions against: mean log pi - log pi_ref of completions read behind other "
    "prompts, at least 0, nats.",
    "score_mean": "Mean score of the step's completions, before clip and penalty.",
    "score_std": "Spread of those scores.",
    "reward_mean": "Mean over completions of the summed per-token rewards: penalized score minus KL cost.",
    "kl_sequence": "Mean over completions of sum of log pi - log pi_ref (k1), nats.",
    "kl_token": "The same per token, nats.",
    "kl_k3": "Mean over completions of the summed k3 estimator, never negative, nats.",
    "kl_coef": "Coefficient of the KL cost in this step.",
    "entropy": "Mean entropy of the policy's next-token distribution before the update, nats.",
    "length_mean": "Mean completion length, tokens.",
    "empty_fraction": "Share of completions that hold no text.",
    "judge_mean": "Mean score by the judge that has no part in training (`--judge`).",
    "judge_error": "Its standard error, from the spread between prompts.",
    "stop_fraction": "Share of completions that ended with a stop token.",
    "sampler_mismatch": "Mean |sampler - scorer| log-probability of sampled tokens, nats.",
    "sampler_mismatch_max": "The largest of them, where all were read again.",
    "importance_weight_mean": "Mean weight min(policy / sampler probability, cap) of tokens a foreign sampler drew.",
    "importance_truncated": "Share of those tokens whose weight met the cap.",
    "importance_effective": "Share of those tokens that as many equal weights would be worth: (sum w)^2 / (n sum w^2).",
    "kl_loss": "KL to the reference as a term of the loss, before its coefficient, mean over the update's minibatches.",
    "entropy_coef": "Coefficient of the entropy bonus in this step, where it has a target.",
    "groups_equal": "Share of prompts whose completions all got the same score: they teach nothing.",
    "sampling_rounds": "Batches of prompts drawn to fill the step with groups whose scores differ.",
    "ptx_loss": "Mean loss per completion token of the demonstrations mixed in.",
    "policy_loss": "Policy loss, mean over the update's minibatches.",
    "value_loss": "Clipped value loss, mean over the update's minibatches; with `value.critic` `head` half the mean "
    "squared error of the new fit (ilql: expectile loss of V to Q).",
    "clip_fraction": "Share of tokens whose ratio the clip made ineffective (cispo: changed).",
    "value_clip_fraction": "Share of tokens whose value the value clip made ineffective.",
    "ratio": "Mean probability ratio of new to old policy.",
    "ratio_stops": "1 where the update ended before a minibatch whose mean ratio was above the limit, else 0.",
    "approx_kl": "Half the mean squared log ratio, over the update's minibatches, nats a token.",
    "approx_kl_last": "The same on the update's last minibatch, which the early stop looks at.",
    "explained_variance": "1 - Var(return - value) / Var(return), of the critic before the update.",
    "epochs_run": "Epochs before the early stop.",
    "grad_norm_policy": "Global gradient norm of the policy before clipping, mean over minibatches.",
    "q_loss": "Mean over tokens of the squared error of both Q heads to reward plus discounted next V (ilql).",
    "cql_loss": "Mean over tokens of the cross-entropy of the token written under both heads' softmax (ilql).",
    "awac_loss": "Mean over tokens of the (weighted) negative log-probability of the token written (ilql).",
    "q_mean": "Mean over tokens of the lesser target Q of the token written, in units of the learned scores (ilql).",
    "value_mean": "Mean over tokens of V before the token (ilql).",
    "advantage_mean": "Mean over tokens of q_mean less value_mean: how much better the data is than the expectile.",
    "grad_norm_heads": "Global gradient norm of the Q and V heads before clipping (ilql).",
    "kept_score_mean": "Mean score of the round's completions that are imitated (rft).",
    "kept_fraction": "Their share of all that were drawn (rft).",
    "demonstrations": "Completions imitated in the round (rft).",
    "grad_norm_critic": "Global gradient norm of the critic before clipping, mean over minibatches.",
}

DECIDED_BY_MACHINE = ("time_s", "tokens_per_s_", "share_of_peak_", "peak_memory_bytes")
"""How the names begin of metrics that differ between two equal runs."""
