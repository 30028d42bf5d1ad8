"""Loss of the reward model on preference pairs."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from harken.core.aggregate import LossOutput, check_denominator, check_same_shape


def bradley_terry_loss(
    chosen_scores_P: Tensor,
    rejected_scores_P: Tensor,
    *,
    soft_labels_P: Tensor,
    margins_P: Tensor,
    weights_P: Tensor,
    denominator: float | Tensor,
    centering: float = 0.0,
) -> LossOutput:
    """Bradley-Terry loss of preference pairs with soft labels, margins and weights.

    Per pair, with delta = chosen - rejected - margin and label p:
    weight * (-p log sigmoid(delta) - (1 - p) log sigmoid(-delta)
    + centering * (chosen + rejected)^2).

    Args:
        chosen_scores_P: (P,), score units, with gradient.
        rejected_scores_P: (P,), likewise.
        soft_labels_P: (P,), probability in [0, 1] that chosen is the better one; 1 = certain,
            0.5 = tie.
        margins_P: (P,), score units by which chosen should lead; 0 = plain.
        weights_P: (P,), at least zero.
        denominator: sum of the weights in the whole batch of the optimizer step.
        centering: coefficient of the squared sum of the two scores, which fixes the scores' zero.

    Returns:
        LossOutput with metrics ``accuracy`` (chosen scored above rejected; equal scores count one
        half; the margin plays no part) and ``score_margin`` (chosen - rejected), weighted means.

    Raises:
        ValueError: if shapes differ.

    Source:
        loss: arXiv:1706.03741 section 2.2.3; margin: arXiv:2307.09288 eq. 2; centering:
        arXiv:2312.09244.
    """
    check_same_shape(
        chosen_scores_P,
        rejected_scores_P=rejected_scores_P,
        soft_labels_P=soft_labels_P,
        margins_P=margins_P,
        weights_P=weights_P,
    )
    check_denominator(denominator)
    difference = chosen_scores_P - rejected_scores_P
    delta = difference - margins_P
    per_pair = -soft_labels_P * logsigmoid(delta) - (1.0 - soft_labels_P) * logsigmoid(-delta)
    per_pair = per_pair + centering * (chosen_scores_P + rejected_scores_P).square()
    difference = difference.detach()
    is_right = (difference > 0).to(difference.dtype) + 0.5 * (difference == 0).to(difference.dtype)
    metrics = {
        "accuracy": (weights_P * is_right).sum() / denominator,
        "score_margin": (weights_P * difference).sum() / denominator,
    }
    return LossOutput((weights_P * per_pair).sum() / denominator, metrics)
