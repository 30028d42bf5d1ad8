"""The critic-free kin of PPO: the loop of `policy.ppo` with the preset of the same name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from harken.config import PpoConfig, preset
from harken.errors import ConfigError
from harken.policy.ppo import ppo
from harken.progress import QUIET, Reporter
from harken.protocols import Reward
from harken.records import Prompt


class PolicyStage(Protocol):
    """The signature that `ppo` and its kin share."""

    def __call__(
        self,
        model: str | Path,
        prompts: Sequence[Prompt],
        reward: Reward,
        out: Path,
        config: PpoConfig | None = None,
        *,
        judge: Reward | None = None,
        inputs: Mapping[str, Path | str] | None = None,
        reporter: Reporter = QUIET,
    ) -> Path:
        """Train a policy on a reward and return the folder of the trained model."""
        ...


def _kin(name: str) -> PolicyStage:
    """Return `ppo` with a preset as its default; a config that lacks the preset's advantage or loss is refused."""

    def stage(
        model: str | Path,
        prompts: Sequence[Prompt],
        reward: Reward,
        out: Path,
        config: PpoConfig | None = None,
        *,
        judge: Reward | None = None,
        inputs: Mapping[str, Path | str] | None = None,
        reporter: Reporter = QUIET,
    ) -> Path:
        usual = preset(name)
        config = config or usual
        for key, found, wanted in (
            ("advantage.kind", config.advantage.kind, usual.advantage.kind),
            ("loss.kind", config.loss.kind, usual.loss.kind),
        ):
            if found != wanted and (key == "advantage.kind" or usual.loss.kind in ("gspo", "cispo")):
                raise ConfigError(
                    f"{name}: {key} is {found!r}, expected {wanted!r}; make the settings with "
                    f"harken.preset({name!r}, ...), or call harken.ppo"
                )
        return ppo(model, prompts, reward, out, config, judge=judge, inputs=inputs, reporter=reporter)

    stage.__name__ = stage.__qualname__ = name.replace("-", "_")
    stage.__doc__ = (
        f"Train a policy as `ppo` does, with the settings `harken.preset({name!r})` unless others are given."
    )
    return stage


rloo = _kin("rloo")
grpo = _kin("grpo")
dr_grpo = _kin("dr-grpo")
reinforce_pp = _kin("reinforce-pp")
remax = _kin("remax")
gspo = _kin("gspo")
cispo = _kin("cispo")
dapo = _kin("dapo")
