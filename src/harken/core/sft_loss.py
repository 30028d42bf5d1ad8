"""Loss of supervised fine-tuning on demonstrations."""

from torch import Tensor

from harken.core.aggregate import LossOutput, masked_sum


def completion_nll(logprobs: Tensor, completion_mask: Tensor, denominator: float | Tensor) -> LossOutput:
    """Negative log-likelihood of the completion tokens, token mean.

    Args:
        logprobs: (B, S), nats, of the policy, with gradient.
        completion_mask: (B, S) bool, True = completion token (the stop token included).
        denominator: completion tokens in the whole batch of the optimizer step.

    Returns:
        LossOutput with metric ``nll``, nats per token.

    Raises:
        ValueError: if the shapes differ.
    """
    loss = -masked_sum(logprobs, completion_mask, denominator)
    return LossOutput(loss, {"nll": loss.detach()})
