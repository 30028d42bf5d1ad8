"""Mutants of rewards, advantages and losses as (name, old source, new source); see mutants.py."""

REWARDS = [
    ("clip one-sided", "scores.clamp(-limit, limit)", "scores.clamp(max=limit)"),
    (
        "replace punishes stopping",
        "scores_B, torch.full_like(scores_B, value))",
        "torch.full_like(scores_B, value), scores_B)",
    ),
    ("subtract adds", "scores_B - value", "scores_B + value"),
    ("KL rewarded", "rewards = -kl_coef *", "rewards = kl_coef *"),
    ("KL not masked", "zero_outside(kl_BS, completion_mask)", "kl_BS"),
    (
        "score on the first token",
        "last = last_true_index(completion_mask)",
        "last = completion_mask.int().argmax(dim=1)",
    ),
    (
        "score in the last column",
        "last = last_true_index(completion_mask)",
        "last = 0 * last_true_index(completion_mask) + kl_BS.shape[1] - 1",
    ),
    ("score replaces the penalty", "scatter_add(", "scatter("),
    ("unbiased deviation", "correction=0", "correction=1"),
    ("gain inverted", "gain = target_std / std", "gain = std / target_std"),
    ("bias ignores the gain", "target_mean - gain * mean", "target_mean - mean"),
    ("bias subtracted", "return gain * scores + bias", "return gain * scores - bias"),
]
ADVANTAGES = [
    ("gamma and lambda swapped", "gamma * next_value", "gae_lambda * next_value"),
    ("lambda dropped", "gamma * gae_lambda * next_advantage", "gamma * next_advantage"),
    ("gamma dropped", "gamma * gae_lambda * next_advantage", "gae_lambda * next_advantage"),
    (
        "value after the last token",
        "values = zero_outside(values.detach().to(dtype), completion_mask)",
        "values = values.detach().to(dtype)",
    ),
    ("own value not subtracted", "* next_value - values[:, step]", "* next_value"),
    ("next value is the value", "torch.where(counts, values[:, step], ", "torch.where(counts, values[:, step - 1], "),
    ("prompt not masked", "advantages = zero_outside(advantages, completion_mask)", ""),
    (
        "returns are advantages",
        "return advantages, advantages + values",
        "return advantages, advantages",
    ),
    (
        "returns of whitened advantages",
        "return advantages, advantages + values",
        "return advantages, whiten(advantages, completion_mask) + values",
    ),
    ("whitening keeps the mean", "zero_outside((x - mean) *", "zero_outside(x *"),
    (
        "whitening by variance",
        "torch.rsqrt(variance + VARIANCE_EPSILON)",
        "1 / (variance + VARIANCE_EPSILON)",
    ),
    (
        "whitening variance unbiased",
        "torch.rsqrt(variance + VARIANCE_EPSILON)",
        "torch.rsqrt(variance * mask.sum() / (mask.sum() - 1))",
    ),
    (
        "whitening guard outside the root",
        "torch.rsqrt(variance + VARIANCE_EPSILON)",
        "1 / (variance.sqrt() + VARIANCE_EPSILON)",
    ),
    ("scaling drops the mean", "zero_outside(whiten(x, mask) + mean, mask)", "whiten(x, mask)"),
]
POLICY_LOSS = [
    (
        "sign flipped",
        "return LossOutput(masked_sum(per_token",
        "return LossOutput(-masked_sum(per_token",
    ),
    ("clip removed", "torch.maximum(unclipped, clipped)", "unclipped"),
    ("only the clip", "torch.maximum(unclipped, clipped)", "clipped"),
    ("min for max", "torch.maximum(unclipped, clipped)", "torch.minimum(unclipped, clipped)"),
    ("bounds swapped", "1.0 - clip_low, 1.0 + clip_high", "1.0 - clip_high, 1.0 + clip_low"),
    (
        "ratio inverted",
        "policy_logprobs - old_logprobs.detach()",
        "old_logprobs.detach() - policy_logprobs",
    ),
    (
        "ratio fixed at 1",
        "policy_logprobs - old_logprobs.detach()",
        "policy_logprobs - policy_logprobs",
    ),
    ("ratio not exponentiated", "MAX_LOG_RATIO).exp()", "MAX_LOG_RATIO)"),
    (
        "log-ratio clamp dropped",
        "log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()",
        "log_ratio.exp()",
    ),
    ("mask dropped", "mask = completion_mask", "mask = torch.ones_like(completion_mask)"),
    (
        "denominator from the microbatch",
        "LossOutput(masked_sum(per_token, mask, denominator)",
        "LossOutput(masked_sum(per_token, mask, mask.sum())",
    ),
    ("dual clip everywhere", "torch.where(advantages < 0, bounded, per_token)", "bounded"),
    ("dual clip where positive", "torch.where(advantages < 0,", "torch.where(advantages > 0,"),
    (
        "dual clip by max",
        "torch.minimum(per_token, -advantages * dual_clip)",
        "torch.maximum(per_token, -advantages * dual_clip)",
    ),
    ("clip fraction of the other branch", "(clipped > unclipped)", "(clipped < unclipped)"),
    ("clip fraction counts ties", "(clipped > unclipped)", "(clipped >= unclipped)"),
    (
        "gradient does not reach the policy",
        "zero_outside(policy_logprobs -",
        "zero_outside(policy_logprobs.detach() + 0 * policy_logprobs -",
    ),
    ("entropy sign", "return masked_sum(entropy", "return -masked_sum(entropy"),
]
IMPORTANCE = [
    ("ratio inverted", "(old_logprobs - sampler_logprobs).detach()", "(sampler_logprobs - old_logprobs).detach()"),
    ("ratio not exponentiated", "completion_mask).exp()", "completion_mask)"),
    ("cap dropped", "ratio.clamp(max=cap)", "ratio"),
    ("cap from below", "ratio.clamp(max=cap)", "ratio.clamp(min=cap)"),
    ("cut from both sides", "ratio.clamp(max=cap)", "ratio.clamp(1 / cap, cap)"),
    ("weights outside the mask", "zero_outside(ratio.clamp(max=cap), completion_mask)", "ratio.clamp(max=cap)"),
    ("gradient through the weights", "sampler_logprobs).detach()", "sampler_logprobs)"),
    ("truncated counts the cap itself", "(ratio > cap)", "(ratio >= cap)"),
    ("effective share not squared", "weights.sum().square()", "weights.sum()"),
    ("effective share without the count", "(count * weights", "(weights"),
    ("mean of ratios", "masked_sum(weights, completion_mask, count)", "masked_sum(ratio, completion_mask, count)"),
]
VALUE_LOSS = [
    ("sign flipped", "loss = 0.5 *", "loss = -0.5 *"),
    ("half dropped", "loss = 0.5 *", "loss = 1.0 *"),
    ("clip removed", "torch.maximum(unclipped, clipped)", "unclipped"),
    ("min for max", "torch.maximum(unclipped, clipped)", "torch.minimum(unclipped, clipped)"),
    (
        "clip about the return",
        "values.clamp(old_values - clip_range, old_values + clip_range)",
        "values.clamp(returns - clip_range, returns + clip_range)",
    ),
    (
        "clip one-sided",
        "values.clamp(old_values - clip_range, old_values + clip_range)",
        "values.clamp(max=old_values + clip_range)",
    ),
    (
        "absolute error",
        "        return error.square()",
        "        return error.abs()",
    ),
    ("mask dropped", "mask = completion_mask", "mask = torch.ones_like(completion_mask)"),
    ("fraction of the other branch", "(clipped > unclipped)", "(clipped < unclipped)"),
    (
        "explained variance inverted",
        "residual / torch.where(varies, variance,",
        "variance / torch.where(varies, residual,",
    ),
    (
        "explained variance of the values",
        "masked_moments((returns - values).detach(), mask)",
        "masked_moments(values.detach(), mask)",
    ),
    ("explained variance without 1 -", "share = 1.0 - residual", "share = residual"),
    (
        "explained variance of a constant",
        "torch.where(varies, share, torch.zeros_like(share))",
        "share",
    ),
]
REWARD_LOSS = [
    (
        "pair swapped",
        "difference = chosen_scores_P - rejected_scores_P",
        "difference = rejected_scores_P - chosen_scores_P",
    ),
    ("margin sign", "difference - margins_P", "difference + margins_P"),
    ("margin dropped", "difference - margins_P", "difference"),
    (
        "soft label inverted",
        "-soft_labels_P * logsigmoid(delta) - (1.0 - soft_labels_P)",
        "-(1.0 - soft_labels_P) * logsigmoid(delta) - soft_labels_P",
    ),
    ("soft label ignored", "- (1.0 - soft_labels_P) * logsigmoid(-delta)", ""),
    ("loss sign", "return LossOutput((weights_P", "return LossOutput(-(weights_P"),
    ("weight dropped", "return LossOutput((weights_P * per_pair)", "return LossOutput((per_pair)"),
    (
        "weight squared",
        "return LossOutput((weights_P * per_pair)",
        "return LossOutput((weights_P**2 * per_pair)",
    ),
    ("plain mean", ").sum() / denominator, metrics)", ").mean(), metrics)"),
    (
        "centering of the difference",
        "(chosen_scores_P + rejected_scores_P)",
        "(chosen_scores_P - rejected_scores_P)",
    ),
    ("centering not squared", "rejected_scores_P).square()", "rejected_scores_P)"),
    ("centering sign", "per_pair + centering", "per_pair - centering"),
    ("ties wrong", "+ 0.5 * (difference == 0)", "+ 0.0 * (difference == 0)"),
    ("ties right", "+ 0.5 * (difference == 0)", "+ 1.0 * (difference == 0)"),
    ("accuracy with the margin", "difference = difference.detach()", "difference = delta.detach()"),
    ("accuracy not weighted", "(weights_P * is_right)", "(is_right)"),
]
SFT_LOSS = [
    ("sign flipped", "loss = -masked_sum", "loss = masked_sum"),
    ("mask dropped", "(logprobs, completion_mask,", "(logprobs, completion_mask | True,"),
    (
        "denominator dropped",
        "completion_mask, denominator)\n    return",
        "completion_mask, 1.0)\n    return",
    ),
]
