"""What metrics are called in a report and which way is better (defined in `docs/metrics.md`)."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Label:
    """How one metric is shown."""

    title: str
    note: str = ""
    better: Literal["higher", "lower"] | None = None


EVALUATION = {
    "reward_score": Label("Reward model's score", "what PPO was trained to raise", "higher"),
    "lexicon": Label("Independent judge's score", "sentiment lexicon, not trained on", "higher"),
    "kl_sequence": Label("Drift from the reference", "KL per completion, nats"),
    "length_tokens": Label("Length", "tokens"),
    "distinct_1": Label("Different words", "share of all words", "higher"),
    "distinct_2": Label("Different word pairs", "share of all pairs", "higher"),
    "distinct_3": Label("Different word triples", "share of all triples", "higher"),
    "repetition": Label("Repetition", "share of four-word runs that recur in a text", "lower"),
    "perplexity_reference": Label("Perplexity", "under the reference model", "lower"),
}

CURVES = {
    "score_mean": Label("Score", "mean of a step; band: standard deviation"),
    "kl_sequence": Label("Drift from the reference", "KL per completion, nats"),
    "entropy": Label("Entropy", "nats a token"),
    "length_mean": Label("Length", "tokens"),
    "clip_fraction": Label("Clipped, policy", "share of tokens"),
    "explained_variance": Label("Explained variance", "critic; 1 is best"),
    "stop_fraction": Label("Ended by itself", "share"),
    "empty_fraction": Label("Without text", "share"),
    "judge_mean": Label("Held-out judge", "mean score of a step"),
    "judge_error": Label("Held-out judge", "standard error of the mean"),
    "score_std": Label("Spread of scores", "standard deviation in a step"),
    "reward_mean": Label("Reward", "score minus KL penalty"),
    "kl_k3": Label("KL, k3 estimate", "nats a token"),
    "kl_coef": Label("KL coefficient"),
    "policy_loss": Label("Policy loss"),
    "value_loss": Label("Critic loss"),
    "value_clip_fraction": Label("Clipped, critic", "share of tokens"),
    "approx_kl": Label("KL of one update", "nats a token"),
    "grad_norm": Label("Gradient norm"),
    "grad_norm_policy": Label("Gradient norm, policy"),
    "grad_norm_critic": Label("Gradient norm, critic"),
    "lr": Label("Learning rate"),
    "tokens_per_s": Label("Speed", "tokens/s"),
    "tokens_per_s_sample": Label("Speed of sampling", "tokens/s"),
    "tokens_per_s_score": Label("Speed of scoring", "tokens/s"),
    "tokens_per_s_train": Label("Speed of training", "tokens/s"),
    "share_of_peak_sample": Label("Use of the machine, sampling", "share of its matrix rate"),
    "share_of_peak_train": Label("Use of the machine, training", "share of its matrix rate"),
    "peak_memory_bytes": Label("Peak memory", "bytes"),
    "padding_waste": Label("Padding", "share of computed tokens"),
    "epochs_run": Label("Epochs run", "a step"),
    "time_s": Label("Time since the start", "seconds"),
    "loss": Label("Loss", "nats"),
    "heldout_loss": Label("Held-out loss", "nats a token"),
    "accuracy": Label("Accuracy", "share of a batch's pairs"),
    "score_margin": Label("Score margin", "chosen minus rejected"),
}

STAGES = {
    "collect": "Judgments",
    "preferences": "Preference pairs",
    "sft": "Fine-tuning",
    "reward": "Reward model",
    "ppo": "PPO",
    "evaluate": "Evaluation",
}


def curve_label(key: str) -> Label:
    """Return how a training metric is shown; an unknown one by its own name."""
    return CURVES.get(key) or Label(key)
