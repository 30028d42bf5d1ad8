"""Value checks of core modules: run on the originals by the tests and on mutants of them.

Each takes a module, so that a mutant can stand in its place. Expected numbers are derived in the
comments or come from tests/reference.
"""

from collections.abc import Callable
from types import ModuleType

from tests.core import checks_distributions as low
from tests.core import checks_kin as kin
from tests.core import checks_losses as high
from tests.core import checks_offline as offline
from tests.core import checks_preference as preference
from tests.core import checks_ridge as ridge

CHECKS: dict[str, list[Callable[[ModuleType], None]]] = {
    "aggregate": [low.check_masked_sum, low.check_masked_moments, kin.check_row_weights],
    "masking": [low.check_masks],
    "logprobs": [
        low.check_token_logprobs,
        low.check_token_logprobs_by_hand,
        low.check_logprob_gradient,
        offline.check_token_logprobs_of_some_tokens,
        kin.check_token_kl,
    ],
    "drawing": [
        offline.check_nucleus,
        low.check_sampling_logprobs,
        low.check_inverse_cdf,
        low.check_draw_tokens,
    ],
    "kl": [
        low.check_kl_estimators,
        low.check_full_kl,
        low.check_approx_kl,
        low.check_adaptive_kl_coef,
        kin.check_kl_loss_terms,
    ],
    "rewards": [
        high.check_scores,
        high.check_token_rewards,
        high.check_score_normalization,
        kin.check_overlong_penalty,
    ],
    "advantages": [high.check_gae, high.check_whiten, kin.check_gae_over_several_turns],
    "group_advantages": [kin.check_leave_one_out, kin.check_group_advantages, kin.check_equal_groups],
    "policy_loss": [
        high.check_ppo_policy_loss,
        high.check_ppo_policy_loss_at_random,
        high.check_ppo_gradient,
        high.check_entropy_bonus,
        kin.check_adaptive_entropy_coef,
    ],
    "sequence_loss": [
        kin.check_reinforce,
        kin.check_reinforce_gradient,
        kin.check_gspo,
        kin.check_gspo_gradient,
        kin.check_cispo,
        kin.check_cispo_gradient,
    ],
    "moments": [kin.check_moments, kin.check_normalization, kin.check_rescaled_head],
    "ridge": [
        ridge.check_by_hand,
        ridge.check_least_squares,
        ridge.check_minimum,
        ridge.check_states_without_variance,
        ridge.check_fewer_tokens_than_features,
    ],
    "importance": [
        high.check_importance_weights,
        high.check_importance_weights_at_random,
        high.check_importance_weights_have_no_gradient,
    ],
    "value_loss": [high.check_clipped_value_loss, kin.check_huber_value_loss, high.check_explained_variance],
    "reward_loss": [high.check_bradley_terry, high.check_bradley_terry_at_random],
    "preference_loss": [
        preference.check_dpo,
        preference.check_dpo_variants,
        preference.check_labels,
        preference.check_ipo,
        preference.check_hinge,
        preference.check_cpo,
        preference.check_simpo,
        preference.check_orpo,
        preference.check_at_random,
        preference.check_gradients,
    ],
    "kto_loss": [
        preference.check_kto,
        preference.check_kto_at_random,
        preference.check_kto_gradient,
        preference.check_kto_baseline,
    ],
    "ilql_loss": [
        offline.check_next_values,
        offline.check_expectile,
        offline.check_ilql,
        offline.check_ilql_at_random,
        offline.check_ilql_gradient,
    ],
    "best_of_n": [
        offline.check_best_of_n_kl,
        offline.check_best_of_n_logprobs,
        offline.check_expected_best_of_n,
        offline.check_soft_choice,
    ],
    "sft_loss": [high.check_completion_nll],
}
"""Checks by module name in harken.core."""
