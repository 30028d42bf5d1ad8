"""Wrong versions of core modules, each one edit away from the original.

A mutant is a name, the module, a piece of its source that stands there exactly once, and what
takes its place.
"""

from types import ModuleType
from typing import NamedTuple

from tests.core import mutants_kin as kin
from tests.core import mutants_losses as losses
from tests.core.mutants_offline import BEST_OF_N, ILQL_LOSS, NUCLEUS, SUPPORT
from tests.core.mutants_preference import KTO_LOSS, PREFERENCE_LOSS


class Mutant(NamedTuple):
    """One edit of one module's source."""

    name: str
    module: str
    old: str
    new: str


AGGREGATE = [
    ("mask dropped", "return torch.where(mask, x, torch.zeros_like(x))", "return x"),
    ("mask inverted", "torch.where(mask, x,", "torch.where(~mask, x,"),
    ("mask multiplied", "return torch.where(mask, x, torch.zeros_like(x))", "return x * mask"),
    ("denominator dropped", ".sum() / check_denominator(denominator)", ".sum()"),
    ("mean of everything", ".sum() / check_denominator(denominator)", ".mean()"),
    ("variance unbiased", ".square().sum() / count", ".square().sum() / (count - 1)"),
    ("variance about the origin", "zero_outside(centered - shift, mask)", "centered"),
    ("origin outside the mask", "values.masked_fill(~mask, smallest).amax()", "values.amax()"),
    ("origin not added back", "return origin + shift,", "return shift,"),
]
MASKING = [
    ("length included", "< lengths[:, None]", "<= lengths[:, None]"),
    ("prompt counted", "within_row & ~lengths_to_mask", "within_row | lengths_to_mask"),
    ("last is the first", "mask.shape[1] - 1 - mask.flip(1)", "mask"),
    ("last off by one", "mask.shape[1] - 1 - mask", "mask.shape[1] - mask"),
]
LOGPROBS = [
    ("no shift", "hidden_BSH[:, :-1][mask_BS[:, 1:]]", "hidden_BSH[mask_BS]"),
    (
        "shift the wrong way",
        "hidden_BSH[:, :-1][mask_BS[:, 1:]]",
        "hidden_BSH.roll(-1, 1)[mask_BS]",
    ),
    ("entropy's temperature ignored", "tempered(logits_NV[rows], temperature), ids_N", "logits_NV[rows], ids_N"),
    (
        "temperature ignored",
        "            values = tempered(logits_NV[rows], temperature)",
        "            values = logits_NV[rows]",
    ),
    ("temperature of a masked one ignored", "tempered(logits, temperature), chunk_ids", "logits, chunk_ids"),
    ("temperature multiplied", "else logits / temperature", "else logits * temperature"),
    (
        "normalizer dropped",
        "logprobs_NV = logits_NV.log_softmax(dim=-1)",
        "logprobs_NV = logits_NV",
    ),
    ("normalizer of the chosen dropped", ".squeeze(1) - normalizers[rows]", ".squeeze(1)"),
    ("gradient without the softmax", ".exp_().mul_(-given[rows])", ".mul_(0)"),
    ("gradient pushes the softmax up", ".mul_(-given[rows])", ".mul_(given[rows])"),
    ("gradient without the token", ".scatter_add_(1, ids_N[rows, None], given[rows])", ""),
    ("gradient at another temperature", "grads[0][:, None] / ctx.temperature", "grads[0][:, None]"),
    ("gradient of other logits", "tempered(logits_NV[rows], ctx.temperature)", "tempered(logits_NV[rows], 1.0)"),
    ("slope not multiplied", "(slope * grads[0][:, None])", "(slope + 0 * grads[0][:, None])"),
    ("an output layer that learns is read once", " and not output(states[:0].detach()).requires_grad", ""),
    ("entropy sign", "return -(logprobs_NV.exp() * finite", "return (logprobs_NV.exp() * finite"),
    (
        "entropy of the drawn token",
        "return logprobs, entropy_of(logprobs_NV)",
        "return logprobs, -logprobs",
    ),
    ("entropy unweighted", "-(logprobs_NV.exp() * finite_logprobs)", "-finite_logprobs"),
]
DRAWING = [
    (
        "sampling temperature ignored",
        "logits = tempered(logits_NV, temperature)",
        "logits = tempered(logits_NV, 1.0)",
    ),
    ("entropy of masses that are no chances", "below.sum(dim=-1) / total", "below.sum(dim=-1)"),
    ("entropy without the mass of all", "(total.log() - below", "(-below"),
    ("entropy of blocks by themselves", "+ blocks.mass.double() * finite) * scale", ") * scale"),
    (
        "blocks of no mass in the entropy",
        "below_top.clamp(min=torch.finfo(below_top.dtype).min).double()",
        "below_top.double()",
    ),
    ("never drawn tokens in the entropy", ".clamp_(min=torch.finfo(dtype).min)", ""),
    ("top-k after top-p", "if 0 < top_k < logits.shape[-1]:", "if False:"),
    ("top-k one fewer", "logits_NV.topk(top_k, dim", "logits_NV.topk(top_k - 1, dim"),
    ("top-k keeps all ties", "is_above | (is_edge & (", "is_above | is_edge | (("),
    (
        "top-p without the token that reaches it",
        "probs.cumsum(dim=-1) - probs",
        "probs.cumsum(dim=-1)",
    ),
    ("top-p one more", "cumsum(dim=-1) - probs", "cumsum(dim=-1) - 2 * probs"),
    ("top-p may keep nothing", "is_kept[:, 0] = True", "is_kept[:, 0] = mass_before[:, 0] < -1"),
    ("top-p ascending", "descending=True", "descending=False"),
    ("top-p not scattered back", ".scatter(-1, order, is_kept)", " | is_kept"),
    (
        "top-p not renormalized",
        "-torch.inf)\n        logprobs = logprobs.log_softmax(dim=-1)",
        "-torch.inf)",
    ),
    (
        "drawn at another temperature",
        "tempered(logits_NV[rows], temperature)",
        "tempered(logits_NV[rows], 1.0)",
    ),
    ("drawn logprob not normalized", " - total.log().to(inside.dtype)", ""),
    (
        "drawn logprob without the largest",
        "places.where(is_token, 0)), temperature) - top",
        "places.where(is_token, 0)), temperature)",
    ),
    (
        "token in a block drawn at another temperature",
        "places.where(is_token, 0)), temperature)",
        "places.where(is_token, 0)), 1.0)",
    ),
    ("tokens beyond the vocabulary", ".masked_fill(~is_token, 0.0)", ""),
    ("blocks weighed alike", "blocks.mass.double() * scale", "blocks.mass.double()"),
    ("drawn whatever top-k and top-p", "if top_k or top_p < 1:", "if False:"),
    ("drawn without top-p", "if top_k or top_p < 1:", "if top_k:"),
    ("draw at or past", "(cumulative > target", "(cumulative >= target"),
    ("draw ignores the mass", "uniforms_N.double() * total", "uniforms_N.double()"),
    ("draw forgets the blocks before", "_first_past(mass, target - before)", "_first_past(mass, target)"),
    ("draw forgets which block", "DrawnTokens(block * BLOCK +", "DrawnTokens(0 * block +"),
    (
        "right edge not guarded",
        "is_past.int().argmax(dim=-1), last_with_mass)",
        "is_past.int().argmax(dim=-1), 0)",
    ),
    (
        "right edge at the last token",
        "- 1 - has_mass.flip(-1).int().argmax(dim=-1)",
        "- 1 + 0 * is_past.sum(-1)",
    ),
]
KL = [
    ("k1 sign", "return policy_logprobs - ref_logprobs", "return ref_logprobs - policy_logprobs"),
    ("k2 half dropped", "return 0.5 * kl_k1", "return kl_k1"),
    (
        "k2 not squared",
        "(policy_logprobs, ref_logprobs).square()",
        "(policy_logprobs, ref_logprobs)",
    ),
    ("k3 exponent sign", "torch.expm1(-delta)", "torch.expm1(delta)"),
    ("k3 linear sign", "torch.expm1(-delta) + delta", "torch.expm1(-delta) - delta"),
    ("k3 without the 1", "torch.expm1(-delta)", "torch.exp(-delta)"),
    ("k3 unbounded", ".clamp(0.0, MAX_K3)", ""),
    ("k3 bound at 1", "MAX_K3 = 10.0", "MAX_K3 = 1.0"),
    ("k3 clamp dropped", ".clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)", ""),
    ("full KL reversed", "policy_logprobs.exp() *", "ref_logprobs.exp() *"),
    (
        "full KL sign",
        "zero_outside(policy_logprobs - ref_logprobs",
        "zero_outside(ref_logprobs - policy_logprobs",
    ),
    ("full KL of logits", "ref_logits.to(dtype).log_softmax(dim=-1)", "ref_logits.to(dtype)"),
    (
        "full KL without care for zero",
        "zero_outside(policy_logprobs - ref_logprobs, has_mass)",
        "(policy_logprobs - ref_logprobs)",
    ),
    (
        "approx_kl unmasked",
        "(policy_logprobs, old_logprobs), mask,",
        "(policy_logprobs, old_logprobs), mask | True,",
    ),
    ("approx_kl of k1", "masked_sum(kl_k2(", "masked_sum(kl_k1("),
    ("controller sign", "(1.0 + error *", "(1.0 - error *"),
    (
        "controller error unclipped",
        "error = min(max(observed_kl / target - 1.0, -MAX_KL_ERROR), MAX_KL_ERROR)",
        "error = observed_kl / target - 1.0",
    ),
    ("controller error not relative", "observed_kl / target - 1.0", "observed_kl - target"),
    ("controller without episodes", "error * num_episodes / horizon", "error / horizon"),
    (
        "controller bounds dropped",
        "num_episodes / horizon), lower), upper)",
        "num_episodes / horizon), -math.inf), math.inf)",
    ),
]
MUTANTS = [
    Mutant(name, module, old, new)
    for module, edits in {
        "aggregate": AGGREGATE + kin.AGGREGATE,
        "masking": MASKING,
        "logprobs": LOGPROBS + SUPPORT + kin.LOGPROBS,
        "drawing": DRAWING + NUCLEUS,
        "kl": KL + kin.KL,
        "rewards": losses.REWARDS + kin.REWARDS,
        "advantages": losses.ADVANTAGES + kin.ADVANTAGES,
        "policy_loss": losses.POLICY_LOSS + kin.POLICY_LOSS,
        "group_advantages": kin.GROUP_ADVANTAGES,
        "sequence_loss": kin.SEQUENCE_LOSS,
        "moments": kin.MOMENTS,
        "ridge": kin.RIDGE,
        "importance": losses.IMPORTANCE,
        "value_loss": losses.VALUE_LOSS + kin.VALUE_LOSS,
        "reward_loss": losses.REWARD_LOSS,
        "preference_loss": PREFERENCE_LOSS,
        "kto_loss": KTO_LOSS,
        "ilql_loss": ILQL_LOSS,
        "best_of_n": BEST_OF_N,
        "sft_loss": losses.SFT_LOSS,
    }.items()
    for name, old, new in edits
]


def execute(name: str, source: str) -> ModuleType:
    """Module made of a source text, apart from the imported one."""
    module = ModuleType(f"mutant_of_{name}")
    exec(compile(source, f"<{module.__name__}>", "exec"), module.__dict__)
    return module
