"""How near a step comes to what the machine can do."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from harken.config import LoraConfig, Tune
from harken.errors import DataError
from harken.lm.machine import matrix_rate, peak_memory
from harken.lm.trunk import Trunk
from harken.runs import Timer
from harken.shapes import ModelShape, forward_flops, num_top_layers, shape_from_config, training_flops


def model_shape(trunk: Trunk) -> ModelShape:
    """Return the shape of a model in memory.

    Raises:
        DataError: its config lacks a size.
    """
    config: Any = trunk.model.config
    config = config.get_text_config()
    return shape_from_config(config.to_dict(), trunk.source)


class Meter:
    """Counts the operations of a step and says which share of the machine's matrix rate it reached."""

    def __init__(self, trunk: Trunk, tune: Tune) -> None:
        """Take the model's shape, and measure the machine; of a model of unknown shape only memory is told."""
        self._device = trunk.device
        self._shape: ModelShape | None = None
        with suppress(DataError):
            self._shape = model_shape(trunk)
        self._lower: ModelShape | None = None
        if self._shape is not None and isinstance(tune, LoraConfig):
            upper = num_top_layers(tune.top_layers, self._shape.layers)
            # Layers without adapters: nothing goes backward through them.
            self._lower = replace(self._shape, layers=self._shape.layers - upper)
            self._shape = replace(self._shape, layers=upper)
        self._tune = tune
        self._rank = tune.rank if isinstance(tune, LoraConfig) else 0
        self._peak = matrix_rate(trunk.dtype, trunk.device)

    def training(self, positions: int, rows: int, logit_tokens: int, *, with_lower: bool = True) -> float:
        """Return operations of a forward and backward pass over rows without padding.

        Args:
            positions: tokens of all rows.
            rows: number of rows.
            logit_tokens: tokens whose logits are wanted.
            with_lower: whether the layers below all adapters are computed, or their states are there already.
        """
        if self._shape is None:
            return 0.0
        length = positions / max(1, rows)
        upper = training_flops(self._shape, positions, length, logit_tokens, tune=self._tune.kind, rank=self._rank)
        return upper + (self.lower(positions, rows) if with_lower else 0.0)

    def reading(self, positions: int, rows: int, logit_tokens: int, *, with_lower: bool = True) -> float:
        """Return operations of a forward pass over rows without padding; arguments as of `training`."""
        if self._shape is None:
            return 0.0
        upper = forward_flops(self._shape, positions, positions / max(1, rows), logit_tokens, self._rank)
        return upper + (self.lower(positions, rows) if with_lower else 0.0)

    def lower(self, positions: int, rows: int) -> float:
        """Return operations of a forward pass through the layers below all adapters."""
        if self._lower is None:
            return 0.0
        return forward_flops(self._lower, positions, positions / max(1, rows), 0)

    def figures(self, timer: Timer, flops: Mapping[str, float]) -> dict[str, float]:
        """Return `share_of_peak_PHASE` of each phase in `flops`, and the peak memory so far, in bytes."""
        shares = {
            f"share_of_peak_{phase}": count / max(timer.seconds[phase], 1e-9) / self._peak
            for phase, count in flops.items()
            if count
        }
        return {**shares, "peak_memory_bytes": float(peak_memory(self._device))}
