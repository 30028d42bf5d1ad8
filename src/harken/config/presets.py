"""Named settings of the policy loop: those of published work, and the critic-free kin of PPO."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from harken.config.base import apply_overrides, build, laid_over, read_toml
from harken.config.ppo import PpoConfig
from harken.errors import ConfigError

PRESETS = Path(__file__).parent.parent / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str, path: Path | None = None, overrides: Sequence[str] = ()) -> PpoConfig:
    """Return a preset's settings, those of a TOML file laid over them, and `a.b=c` overrides over these.

    Raises:
        ConfigError: no such preset, or a setting that is not right; the message names it.
    """
    values = read_preset(name)
    if path is not None:
        values = laid_over(values, read_toml(path))
    where = f"preset {name!r}" if path is None else f"{path} over preset {name!r}"
    return build(PpoConfig, apply_overrides(values, overrides), where=where)


def preset(name: str, **changes: Any) -> PpoConfig:
    """Return a preset's settings with some changed, as in `preset("grpo", steps=50, kl={"coef": 0.1})`.

    Raises:
        ConfigError: no such preset, or a setting that is not right; the message names it.
    """
    given = {key: value.model_dump() if hasattr(value, "model_dump") else value for key, value in changes.items()}
    return build(PpoConfig, laid_over(read_preset(name), given), where=f"preset {name!r}")


def read_preset(name: str) -> Mapping[str, Any]:
    """Return what a preset sets.

    Raises:
        ConfigError: no such preset.
    """
    path = PRESETS / f"{name}.toml"
    if name not in preset_names():
        raise ConfigError(f"preset {name!r}: there is none of that name; there are {', '.join(preset_names())}")
    return cast("Mapping[str, Any]", read_toml(path))
