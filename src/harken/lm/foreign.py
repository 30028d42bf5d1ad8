"""What every foreign engine is asked for, and what it must give back."""

from typing import Any

from harken.errors import SamplerError
from harken.lm.sample import Sampled
from harken.records import SamplingSettings


def request_fields(settings: SamplingSettings, stop_ids: frozenset[int]) -> dict[str, Any]:
    """Return the fields of one request to vLLM, in process or on a server, but for prompt and seed.

    All that shapes the distribution is said, or the engine fills it in from the model's generation_config.
    """
    return {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        # Only our stop tokens end a completion; those the engine knows by itself are among them.
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": True,
        "min_tokens": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,  # of the drawn token and no other
    }


def checked_sampled(
    token_ids: list[int], logprobs: list[float], finish_reason: object, stop_ids: frozenset[int]
) -> Sampled:
    """Return a completion, if it is one that a policy can learn from.

    Args:
        token_ids: as drawn.
        logprobs: of each token, nats.
        finish_reason: the engine's word.
        stop_ids: at which sampling stops.

    Raises:
        SamplerError: no tokens, not one log-probability for each, a reason other than `stop` and `length`, or a stop
            token where the reason says that there is none.
    """
    if not token_ids or len(token_ids) != len(logprobs):
        raise SamplerError(
            f"the engine gave {len(token_ids)} tokens with {len(logprobs)} log-probabilities, expected one for each"
        )
    if finish_reason not in ("stop", "length"):
        raise SamplerError(f"the engine ended a completion with reason {finish_reason!r}, expected stop or length")
    stops = [token in stop_ids for token in token_ids]
    if stops[-1] != (finish_reason == "stop") or any(stops[:-1]):
        raise SamplerError(
            f"the engine ended a completion with reason {finish_reason!r}, {sum(stops)} of its {len(stops)} tokens are "
            f"stop tokens {sorted(stop_ids)}; expected one, as the last, exactly when the reason is stop"
        )
    return Sampled(token_ids, logprobs, "stop" if stops[-1] else "length")
