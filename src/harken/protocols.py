"""The seams: what a reward and a sampler must be able to do, whoever implements them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from harken.records import Completion, Prompt


@runtime_checkable
class Reward(Protocol):
    """Anything callable that scores completions: a reward model, a function, a service, a weighted sum.

    Called with prompts and completions of equal length, it returns one finite score each, in that order.
    """

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion], /) -> Sequence[float]:
        """Return one finite score per completion."""
        ...
