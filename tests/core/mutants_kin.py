"""Mutants of what PPO's kin and its options need as (name, old source, new source); see mutants.py."""

GROUP_ADVANTAGES = [
    ("own reward in the baseline", "* (group_size / (group_size - 1))", "* 1.0"),
    ("leave-one-out factor inverted", "(group_size / (group_size - 1))", "((group_size - 1) / group_size)"),
    (
        "leave-one-out sign",
        "return _centered(rewards_B, group_size).flatten() *",
        "return -_centered(rewards_B, group_size).flatten() *",
    ),
    (
        "std biased",
        ".sum(dim=1, keepdim=True) / (group_size - 1)).sqrt()",
        ".sum(dim=1, keepdim=True) / group_size).sqrt()",
    ),
    ("variance for std", "/ (group_size - 1)).sqrt()", "/ (group_size - 1))"),
    ("std multiplied", "centered / (std + STD_EPSILON)", "centered * (std + STD_EPSILON)"),
    ("std without epsilon", "(std + STD_EPSILON)", "(std)"),
    (
        "std of the whole batch",
        "centered.square().sum(dim=1, keepdim=True)",
        "centered.square().sum(dim=(0, 1), keepdim=True)",
    ),
    ("always divided", "if divide_by_std:", "if True:"),
    ("never divided", "if divide_by_std:", "if False:"),
    ("mean of the batch", "shifted - shifted.mean(dim=1, keepdim=True)", "shifted - shifted.mean()"),
    ("mean not subtracted", "shifted - shifted.mean(dim=1, keepdim=True)", "shifted"),
    ("no shift", "shifted = groups - groups[:, :1]", "shifted = groups"),
    ("groups interleaved", ".reshape(-1, group_size)", ".reshape(group_size, -1).T"),
    ("equal if any", ".all(dim=1)", ".any(dim=1)"),
]
SEQUENCE_LOSS = [
    ("reinforce sign", "per_token = -zero_outside(advantages", "per_token = zero_outside(advantages"),
    (
        "reinforce of probabilities",
        "mask) * zero_outside(policy_logprobs, mask)\n    ratio =",
        "mask) * zero_outside(policy_logprobs, mask).exp()\n    ratio =",
    ),
    (
        "reinforce with gradient in the advantage only",
        "zero_outside(policy_logprobs, mask)\n    ratio",
        "zero_outside(policy_logprobs.detach() + 0 * policy_logprobs, mask)\n    ratio",
    ),
    ("gspo sums", ".clamp(min=1)\n    output", ".clamp(max=1)\n    output"),
    ("gspo by the width", "mask.sum(dim=1, keepdim=True).clamp(min=1)", "mask.shape[1]"),
    (
        "gspo ratio inverted",
        "zero_outside(policy_logprobs - old_logprobs.detach(), mask)",
        "zero_outside(old_logprobs.detach() - policy_logprobs, mask)",
    ),
    ("gspo per token", "mean_log_ratio.expand_as(log_ratio)", "log_ratio"),
    (
        "gspo bounds swapped",
        "        clip_low=clip_low,\n        clip_high=clip_high,",
        "        clip_low=clip_high,\n        clip_high=clip_low,",
    ),
    ("gspo approx_kl of the mean", '"approx_kl": moved}', '"approx_kl": output.metrics["approx_kl"]}'),
    ("cispo sign", "per_token = -weights *", "per_token = weights *"),
    ("cispo not clipped", "ratio.clamp(1.0 - clip_low, 1.0 + clip_high)", "ratio"),
    ("cispo bounds swapped", "1.0 - clip_low, 1.0 + clip_high", "1.0 - clip_high, 1.0 + clip_low"),
    (
        "cispo gradient through the ratio",
        "ratio = _ratio(policy_logprobs, old_logprobs, mask).detach()\n    weights",
        "ratio = _ratio(policy_logprobs, old_logprobs, mask)\n    weights",
    ),
    (
        "cispo without the log",
        "advantages.detach(), mask) * zero_outside(policy_logprobs, mask)\n    metrics",
        "advantages.detach(), mask) * zero_outside(policy_logprobs, mask).exp()\n    metrics",
    ),
    ("cispo counts the unclipped", "weights != ratio", "weights == ratio"),
    ("ratio not exponentiated", "MAX_LOG_RATIO).exp()", "MAX_LOG_RATIO)"),
    ("ratio clamp dropped", "log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()", "log_ratio.exp()"),
    (
        "ratio of kin inverted",
        "zero_outside(policy_logprobs - old_logprobs, mask)",
        "zero_outside(old_logprobs - policy_logprobs, mask)",
    ),
    (
        "metric of another mean",
        '"ratio": masked_sum(ratio, mask, denominator)',
        '"ratio": masked_sum(ratio, mask, mask.sum())',
    ),
]
MOMENTS = [
    ("mean biased to 0", "self.mean_sum / self.weight if", "self.mean_sum if"),
    ("deviation biased to 0", "self.square_sum / self.weight - self.mean**2", "self.square_sum - self.mean**2"),
    ("second moment for variance", "self.square_sum / self.weight - self.mean**2", "self.square_sum / self.weight"),
    ("variance for deviation", "MIN_STD**2) ** 0.5", "MIN_STD**2)"),
    (
        "no smallest deviation",
        "max(self.square_sum / self.weight - self.mean**2, MIN_STD**2)",
        "(self.square_sum / self.weight - self.mean**2)",
    ),
    ("deviation 0 at the start", "return 1.0", "return 0.0"),
    ("mean by another share", "+ share * mean,", "+ decay * mean,"),
    ("weight not decayed", "weight=decay * moments.weight + share", "weight=1.0"),
    ("means not decayed", "mean_sum=decay * moments.mean_sum +", "mean_sum=moments.mean_sum +"),
    ("squares not decayed", "square_sum=decay * moments.square_sum +", "square_sum=moments.square_sum +"),
    ("variances of batches only", "(variance + mean**2)", "(variance)"),
    ("normalize multiplies", "(x - moments.mean) / moments.std", "(x - moments.mean) * moments.std"),
    ("normalize keeps the mean", "(x - moments.mean) / moments.std", "x / moments.std"),
    ("denormalize adds first", "x * moments.std + moments.mean", "(x + moments.mean) * moments.std"),
    ("head not rescaled", "weight * (old.std / new.std)", "weight"),
    ("head rescaled the other way", "(old.std / new.std)", "(new.std / old.std)"),
    ("bias without the means", "(bias * old.std + old.mean - new.mean)", "(bias * old.std)"),
    ("bias means swapped", "old.mean - new.mean", "new.mean - old.mean"),
]
RIDGE = [
    ("weight not decayed", "decay * seen.weight + len(y)", "seen.weight + len(y)"),
    ("covariance not decayed", "decay * seen.covariance +", "seen.covariance +"),
    ("returns not decayed", "decay * seen.cross +", "seen.cross +"),
    ("states not centered", "x = x - mean_state", "x = x * 1.0"),
    ("returns scaled", "x.T @ (y - mean_return)", "x.T @ (2 * (y - mean_return))"),
    ("penalty without the tokens", ".mean() / seen.weight)", ".mean())"),
    ("penalty by the sum of the variances", ".diagonal().mean()", ".diagonal().sum()"),
    ("ridge forgotten", "penalty = ridge *", "penalty ="),
    ("least variance too large", ".clamp_min(MIN_VARIANCE)", ".clamp_min(10.0)"),
    ("bias of returns only", "seen.mean_return - weight @ seen.mean_state", "seen.mean_return"),
    ("bias with the wrong sign", "seen.mean_return - weight", "seen.mean_return + weight"),
]
AGGREGATE = [
    ("sequence mean is the token mean", "per_row / counts.clamp(min=1)", "torch.ones_like(counts)"),
    ("sequence mean not scaled", "per_row / counts.clamp(min=1)", "1 / counts.clamp(min=1)"),
    ("constant by the counts", "per_row / length", "per_row / counts"),
    ("constant inverted", "per_row / length", "length / per_row"),
    ("mean count of the columns", "counts.sum() / len(counts)", "counts.mean() * len(counts)"),
    (
        "empty row has a weight",
        "torch.where(counts > 0, per_row / counts.clamp(min=1), 0.0)",
        "(per_row + 1) / counts.clamp(min=1)",
    ),
]
KL = [
    ("loss without the ratio", "return ratio * kl_k2(policy, ref)", "return kl_k2(policy, ref)"),
    ("k3 loss without the ratio", "return ratio * _unbounded_k3(policy, ref)", "return _unbounded_k3(policy, ref)"),
    ("k3 loss bounded", "return ratio * _unbounded_k3(policy, ref)", "return ratio * kl_k3(policy, ref)"),
    ("gradient through the loss's ratio", "torch.clamp(kl_k1(policy.detach(), old)", "torch.clamp(kl_k1(policy, old)"),
    ("loss's ratio inverted", "kl_k1(policy.detach(), old)", "kl_k1(old, policy.detach())"),
    (
        "loss's ratio unclamped",
        "torch.clamp(kl_k1(policy.detach(), old), -MAX_LOG_RATIO, MAX_LOG_RATIO)",
        "kl_k1(policy.detach(), old)",
    ),
    ("loss without mask", "policy = zero_outside(policy_logprobs, mask)", "policy = policy_logprobs"),
]
VALUE_LOSS = [
    ("huber where small", "torch.where(error.abs() > huber_delta,", "torch.where(error.abs() < huber_delta,"),
    ("huber slope", "2.0 * huber_delta * error.abs()", "huber_delta * error.abs()"),
    ("huber offset", "- huber_delta**2", "+ huber_delta**2"),
    ("huber of the signed error", "2.0 * huber_delta * error.abs()", "2.0 * huber_delta * error"),
    (
        "huber for one branch",
        "clipped = _penalty(clipped_values - returns, huber_delta)",
        "clipped = _penalty(clipped_values - returns, None)",
    ),
]
REWARDS = [
    ("overlong rewarded", "(max_length - buffer - lengths_B.float())", "(lengths_B.float() - max_length + buffer)"),
    ("overlong without the buffer", "(max_length - buffer - lengths_B.float())", "(max_length - lengths_B.float())"),
    ("overlong slope", ".float()) / buffer).clamp", ".float()) / max_length).clamp"),
    ("overlong rewards the short", ".clamp(-1.0, 0.0)", ".clamp(-1.0, 1.0)"),
]
POLICY_LOSS = [
    ("entropy control sign", "change if entropy < target else -change", "-change if entropy < target else change"),
    ("entropy control only up", "change if entropy < target else -change", "change if entropy < target else 0.0"),
    ("entropy control at the target", "if entropy < target", "if entropy <= target"),
    ("entropy coefficient below 0", "min(max(moved, 0.0), upper)", "min(moved, upper)"),
    ("entropy coefficient unbounded", "min(max(moved, 0.0), upper)", "max(moved, 0.0)"),
]
ADVANTAGES = [
    (
        "advantage lost between turns",
        "gae_lambda * next_advantage, next_advantage)",
        "gae_lambda * next_advantage, torch.zeros_like(next_advantage))",
    ),
    ("value lost between turns", "torch.where(counts, values[:, step], next_value)", "values[:, step]"),
    (
        "discounted between turns",
        "gae_lambda * next_advantage, next_advantage)",
        "gae_lambda * next_advantage, gamma * gae_lambda * next_advantage)",
    ),
]
LOGPROBS = [
    ("KL of all tokens", "full_kl(inside,", "full_kl(logits_NV,"),
    (
        "KL at another temperature",
        "tempered(reference[1](chunk_ref_states), temperature)",
        "tempered(reference[1](chunk_ref_states), 1.0)",
    ),
    ("KL of the reference's states with itself", "preceding_states(reference[0], completion_mask_BS)", "states"),
    (
        "KL reversed",
        "full_kl(inside, ref_logits_NV)",
        "full_kl(ref_logits_NV, inside)",
    ),
]
