"""The seams: what a reward and a sampler must be able to do, whoever implements them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from harken.errors import HarkenError, RewardError
from harken.records import Completion, FinishReason, Message, Prompt


@runtime_checkable
class Reward(Protocol):
    """Anything callable that scores completions: a reward model, a function, a service, a weighted sum.

    Called with prompts and completions of equal length, it returns one finite score each, in that order.
    """

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion], /) -> Sequence[float]:
        """Return one finite score per completion."""
        ...


@runtime_checkable
class PairwiseJudge(Protocol):
    """A judge of two completions side by side, where no score of one alone is to be had."""

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion], /
    ) -> Sequence[float]:
        """Return for each prompt the probability that the first completion is the better one."""
        ...


@runtime_checkable
class ScoresTokens(Protocol):
    """A reward that can say which token earned what; the policy loops then ask for that."""

    def token_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], /
    ) -> Sequence[Sequence[float]]:
        """Return for each completion one finite score for each of its `token_ids`, the stop token included."""
        ...


@runtime_checkable
class SharesBase(Protocol):
    """A reward that can live on a base model which is in memory already."""

    def attach(self, trunk: Any, /) -> None:
        """Use the given `harken.lm.trunk.Trunk` where it holds the reward's own base; called before the first score."""
        ...


@runtime_checkable
class Examined(Protocol):
    """A reward that was compared with people's choices it had not seen."""

    def doubt(self) -> str | None:
        """Say what was found, if by that it may be no better than chance; else None."""
        ...


def refuse_chance(reward: object) -> None:
    """Insist on a reward that is known to be better than a coin, or of which nothing is known.

    Raises:
        RewardError: it may be a coin; the message says how often it was right.
    """
    if isinstance(reward, Examined) and (doubt := reward.doubt()):
        raise RewardError(
            f"{doubt}; what a policy learns from it may be noise: train it on more pairs, or go on all the same with "
            "score.accept_chance = true"
        )


class Piece(NamedTuple):
    """What comes next of an answer that is being written."""

    text: str
    finish_reason: FinishReason | None = None
    """Why the answer ends here; None where it goes on."""


class ChatModel(Protocol):
    """A model one can talk with: our own sampler, or a service behind an address."""

    @property
    def name(self) -> str:
        """What stored completions say of who wrote them."""
        ...

    def stream(self, messages: Sequence[Message], /, *, seed: int, is_stopped: Callable[[], bool]) -> Iterator[Piece]:
        """Write the answer to a conversation, piece by piece; the last piece has a finish reason.

        Args:
            messages: the conversation; the last message is by the user.
            seed: the same one gives the same answer, where the model can do that.
            is_stopped: asked often; once it is True no more is written and no last piece comes.

        Raises:
            HarkenError: there is no answer; the message is for the person who asked.
        """
        ...


def whole_answer(model: ChatModel, messages: Sequence[Message], *, seed: int) -> Piece:
    """Return a whole answer of a model that streams."""
    pieces = list(model.stream(messages, seed=seed, is_stopped=lambda: False))
    return Piece("".join(piece.text for piece in pieces), pieces[-1].finish_reason if pieces else None)


def checked_scores(reward: Reward, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Call a reward and insist on one finite score per completion.

    Raises:
        RewardError: it raised, gave the wrong number of scores, or one that is not a finite number; the message names
            the prompt.
    """
    try:
        scores = [float(score) for score in reward(prompts, completions)]
    except HarkenError:
        raise
    except Exception as error:
        _ask_one_by_one(reward, prompts, completions)
        message = f"{_raised(error)} for {_span(prompts)} asked together, for none of them alone; mend it and run again"
        raise RewardError(message) from error
    if len(scores) != len(completions):
        raise RewardError(
            f"the reward returned {len(scores)} scores for {len(completions)} completions ({_span(prompts)}); it must "
            "return one a completion, in order"
        )
    for prompt, score in zip(prompts, scores, strict=True):
        if not math.isfinite(score):
            raise RewardError(f"the reward returned {score} for prompt {prompt.id!r}; scores must be finite numbers")
    return scores


def checked_preferences(
    judge: PairwiseJudge, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
) -> list[float]:
    """Call a pairwise judge and insist on one probability per pair.

    Raises:
        RewardError: it raised, gave the wrong number of them, or one outside [0, 1]; the message names the prompt.
    """
    try:
        found = [float(value) for value in judge.compare(prompts, first, second)]
    except HarkenError:
        raise
    except Exception as error:
        raise RewardError(f"the judge raised {type(error).__name__}: {error}, for {_span(prompts)}") from error
    if len(found) != len(prompts):
        raise RewardError(f"the judge returned {len(found)} probabilities for {len(prompts)} pairs ({_span(prompts)})")
    for prompt, value in zip(prompts, found, strict=True):
        if not 0 <= value <= 1:
            raise RewardError(f"the judge returned {value} for prompt {prompt.id!r}; expected a probability")
    return found


def checked_token_scores(
    reward: ScoresTokens, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[list[float]]:
    """Call a reward of tokens and insist on one finite score for each token of each completion.

    Raises:
        RewardError: it raised, gave the wrong number of scores, or one that is not a finite number; the message names
            the prompt.
    """
    try:
        rows = [[float(value) for value in row] for row in reward.token_scores(prompts, completions)]
    except HarkenError:
        raise
    except Exception as error:
        raise RewardError(f"{_raised(error)} for {_span(prompts)}; mend it and run again") from error
    if len(rows) != len(completions):
        raise RewardError(
            f"token_scores returned {len(rows)} rows for {len(completions)} completions ({_span(prompts)}); it must "
            "return one a completion, in order"
        )
    for prompt, completion, row in zip(prompts, completions, rows, strict=True):
        wanted = len(completion.token_ids or ())
        if len(row) != wanted or not all(map(math.isfinite, row)):
            raise RewardError(
                f"token_scores returned {len(row)} scores for prompt {prompt.id!r}, expected {wanted} finite numbers, "
                "one for each of the completion's token_ids"
            )
    return rows


def _ask_one_by_one(reward: Reward, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
    """Find the first prompt at which a reward that raised raises alone, and say so."""
    for prompt, completion in zip(prompts, completions, strict=True):
        try:
            [float(score) for score in reward([prompt], [completion])]
        except HarkenError:
            raise
        except Exception as error:
            raise RewardError(f"{_raised(error)} for prompt {prompt.id!r}; mend it and run again") from error


def _raised(error: Exception) -> str:
    return f"the reward raised {type(error).__name__}: {error},"


def _span(prompts: Sequence[Prompt]) -> str:
    return f"prompts {prompts[0].id!r} to {prompts[-1].id!r}" if prompts else "no prompts"
