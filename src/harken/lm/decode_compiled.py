"""The layers of a model built like llama in one call of `lm.kernels`, for decoding in bf16.

Between its many small operations a decoding step otherwise waits for Python and for threads to wake, a fourth of its
time; and its products wait for weights that could have been asked for before.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation

from harken.lm.batch import Span
from harken.lm.kernels import LANES, SIDE, Kernels, empty_in_large_pages, find_attention
from harken.lm.llama import Layer, LlamaLayers, Projection

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
Rotations = tuple[Tensor, Tensor]


class _Projection(ctypes.Structure):
    """As `projection` in c/layers.c."""

    _fields_ = [
        *[(name, _POINTER) for name in ("weight", "down", "up")],
        *[(name, _LONG) for name in ("inputs", "outputs", "ranks")],
    ]


class _Layer(ctypes.Structure):
    """As `layer` in c/layers.c."""

    _fields_ = [
        *[(name, _Projection) for name in ("qkv", "out", "gate_up", "down")],
        *[(name, _POINTER) for name in ("norm", "mlp_norm")],
        *[(name, _FLOAT) for name in ("eps", "mlp_eps")],
        *[(name, _POINTER) for name in ("keys", "values")],
    ]


class _Input(ctypes.Structure):
    """As `input` in c/layers.c."""

    _fields_ = [
        *[(name, _POINTER) for name in ("cosines", "sines")],
        *[(name, _LONG) for name in ("rows", "hidden", "inner", "heads", "key_heads", "width", "room", "ranks")],
        ("scale", _FLOAT),
        ("starts", _POINTER),
        ("here", _LONG),
        *[(name, _POINTER) for name in ("spans", "memory_rows", "columns")],
        *[(name, _LONG) for name in ("num_spans", "copies")],
    ]


def find_compiled(layers: LlamaLayers) -> Kernels | None:
    """Return what computes such layers in one call; None = call them."""
    found = find_attention(layers.dtype, layers.device, layers.width)
    fits = found is not None and found.has_units and layers.width % (2 * LANES) == 0
    return found if fits and layers.layers and all(_fits(layer) for layer in layers.layers) else None


def _fits(layer: Layer) -> bool:
    projections = _projections(layer)
    return (
        isinstance(layer.act, nn.SiLU | SiLUActivation)
        and layer.query_norm is None
        and all(part.bias is None for part in projections)
        and all(size % SIDE == 0 for part in projections for size in part.weight.shape)
        and len({part.weight.dtype for part in projections} | {layer.norm[0].dtype, layer.mlp_norm[0].dtype}) == 1
    )


def _projections(layer: Layer) -> tuple[Projection, ...]:
    return layer.qkv, layer.out, layer.gate_up, layer.down


class CompiledLayers:
    """The layers, with copies of their weights in tiles; they are of this moment's adapters."""

    def __init__(self, kernels: Kernels, layers: LlamaLayers) -> None:
        """Lay the weights.

        Args:
            kernels: `find_compiled` them.
            layers: that they fit.
        """
        self._kernels, self._layers = kernels, layers
        self._kept: list[Tensor] = []  # their addresses are in the structures
        size = sum(part.weight.numel() for layer in layers.layers for part in _projections(layer))
        self._free = empty_in_large_pages((size,), kernels.dtype)
        self._all = (_Layer * len(layers.layers))(*[self._layer(layer) for layer in layers.layers])
        self._ranks = max(
            getattr(layer, name).ranks for layer in self._all for name in ("qkv", "out", "gate_up", "down")
        )

    def bind(self, memory: Sequence[Tensor]) -> None:
        """Take each layer's memory for keys and values, (2, R, key heads, room, D)."""
        for layer, own in zip(self._all, memory, strict=True):
            assert own.is_contiguous()
            layer.keys, layer.values = (part.data_ptr() for part in own)
        self._memory = memory
        _, self._rows, _, self._room, _ = memory[0].shape

    def step(self, x: Tensor, rotations: Rotations, starts: Tensor, here: int) -> Tensor:
        """Append a position to each row's memory; return states (R, H) after the last layer, before the last norm.

        Args:
            x: (R, H), states before the first layer.
            rotations: of the rows' positions (`LlamaLayers.rotations`).
            starts: (R,) long, the first place in memory that each row may read, at most `here`.
            here: the place, below `room`.
        """
        assert len(x) <= self._rows
        assert here < self._room
        assert (starts.dtype, starts.shape) == (torch.long, (len(x),))
        starts = starts.contiguous()
        return self._through(x, rotations, starts=starts.data_ptr(), here=here)

    def read(
        self, x: Tensor, rotations: Rotations, spans: Sequence[Span], places: tuple[Tensor, Tensor], copies: int
    ) -> Tensor:
        """Read whole prompts; return states (N, H) after the last layer, before the last norm.

        Args:
            x: (N, H), states of all tokens before the first layer.
            rotations: of their positions.
            spans: of all tokens, in their order.
            places: (N,) long each, the prompt of a token and its place in memory.
            copies: rows of memory of each prompt, side by side.
        """
        spanned = torch.tensor(spans)
        assert int(spanned[-1, 1]) == len(x)
        rows, columns = (part.contiguous() for part in places)
        assert (int(rows.max()) + 1) * copies <= self._rows
        assert int(columns.max()) < self._room
        return self._through(
            x,
            rotations,
            spans=spanned.data_ptr(),
            memory_rows=rows.data_ptr(),
            columns=columns.data_ptr(),
            num_spans=len(spans),
            copies=copies,
        )

    def _through(self, x: Tensor, rotations: Rotations, **values: Any) -> Tensor:
        layers, x = self._layers, x.clone(memory_format=torch.contiguous_format)
        cosines, sines = (part.contiguous() for part in rotations)
        assert cosines.shape == sines.shape == (len(x), 1, layers.width)
        assert x.dtype == cosines.dtype == sines.dtype == self._kernels.dtype
        given = _Input(
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            rows=len(x),
            hidden=layers.hidden_size,
            inner=self._all[0].down.inputs,
            heads=layers.groups * layers.key_heads,
            key_heads=layers.key_heads,
            width=layers.width,
            room=self._room,
            ranks=self._ranks,
            scale=layers.scale,
            **values,
        )
        threads = torch.get_num_threads()
        if self._kernels.library.through_layers(self._all, len(self._all), x.data_ptr(), ctypes.byref(given), threads):
            raise MemoryError(f"no memory for {len(x)} rows of {layers.hidden_size} numbers in {len(self._all)} layers")
        return x

    def _layer(self, layer: Layer) -> _Layer:
        norms = {"norm": layer.norm, "mlp_norm": layer.mlp_norm}
        return _Layer(
            qkv=self._projection(layer.qkv),
            out=self._projection(layer.out),
            gate_up=self._projection(layer.gate_up, is_gated=True),
            down=self._projection(layer.down),
            eps=layer.norm[1],
            mlp_eps=layer.mlp_norm[1],
            **{name: self._address(weight.detach().contiguous()) for name, (weight, _) in norms.items()},
        )

    def _projection(self, part: Projection, *, is_gated: bool = False) -> _Projection:
        outputs, inputs = part.weight.shape
        out, self._free = self._free.tensor_split([part.weight.numel()])
        tiles = self._kernels.tiles
        weight = self._address(tiles(part.weight.detach(), out, is_gated=is_gated))
        made = _Projection(weight=weight, inputs=inputs, outputs=outputs)
        if part.down is not None and part.up is not None:
            missing = -len(part.down) % SIDE
            made.ranks = len(part.down) + missing
            made.down = self._address(tiles(functional.pad(part.down, (0, 0, 0, missing))))
            made.up = self._address(tiles(functional.pad(part.up.T, (0, missing)), is_gated=is_gated))
        return made

    def _address(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()
