"""What stands between matrix products, compiled for this processor where it has a C compiler.

torch goes over memory once for each small operation; the sources in `c/` once for a whole norm, gate, rotation or
attention. Nothing depends on it: `find` returns None where there is no compiler, on a GPU and for other types, and
its callers then use torch. `HARKEN_KERNELS=0` turns it off, `CC` names another compiler.
"""

import ctypes
import hashlib
import math
import mmap
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from harken.assets import cache_folder
from harken.core.drawing import BLOCK, Blocks

SOURCES = Path(__file__).with_name("c")
LANES, WIDEST = 16, 256
"""As in the sources: sizes of rows and heads are multiples of the first, a head is no wider than the second."""
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
DEFINES = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
COMPILE_S = 60
"""Seconds until a compiler that does not answer is left alone; it takes three, or ten without AVX-512."""

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
PARAMETERS = {
    "rms_norm": (*[_POINTER] * 3, *[_LONG] * 2, _FLOAT, _INT),
    "rms_norm_backward": (*[_POINTER] * 5, *[_LONG] * 2, _FLOAT, _INT),
    "swiglu": (*[_POINTER] * 2, *[_LONG] * 2, _INT),
    "swiglu_backward": (*[_POINTER] * 3, *[_LONG] * 2, _INT),
    "rotate": (*[_POINTER] * 4, *[_LONG] * 4, _FLOAT, _INT),
    "sum_blocks": (_POINTER, _FLOAT, *[_POINTER] * 3, *[_LONG] * 2, _INT),
    "attend_step": (*[_POINTER] * 3, _LONG, *[_POINTER] * 4, *[_LONG] * 6, _FLOAT, _INT),
    "attend_spans": (*[_POINTER] * 3, _LONG, _POINTER, _LONG, _POINTER, *[_LONG] * 3, _FLOAT, _INT),
    "attend_spans_backward": (*[_POINTER] * 4, _LONG, _POINTER, _LONG, _POINTER, *[_LONG] * 3, _FLOAT, _INT),
}
TILE_PARAMETERS = {
    "lay_tiles": (*[_POINTER] * 2, *[_LONG] * 2, *[_INT] * 2),
    "multiply_tiles": (*[_POINTER] * 3, *[_LONG] * 3, _INT),
    "through_layers": (_POINTER, _LONG, *[_POINTER] * 2, _INT),
}
SIDE = 32
"""Inputs and outputs of a weight in tiles are multiples of it."""


Heads = tuple[Tensor, Tensor, Tensor]


class Kernels:
    """The compiled functions for numbers of one type, bf16 or fp32; all that is given to one has this type."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        """Take the library."""
        self.library, self.dtype = library, dtype
        self.has_units = bool(library.has_units())
        """Whether this processor has units for products of this type, which it takes for weights in tiles."""
        for name, parameters in (PARAMETERS | TILE_PARAMETERS if dtype == torch.bfloat16 else PARAMETERS).items():
            getattr(library, name).argtypes = parameters

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / root mean square * weight, (..., H) of (..., H) and (H,) (arXiv:1910.07467)."""
        x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
        size = x.shape[-1]
        assert size % LANES == 0, size
        pointers = self._pointers(x, weight, out)
        self.library.rms_norm(*pointers, x.numel() // size, size, eps, torch.get_num_threads())
        return out

    def rms_norm_backward(self, grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return the slopes (..., H) for x, and each row's inverse root mean square (..., 1) fp32."""
        grad, x, out = grad.contiguous(), x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
        inverses, size = torch.empty(*x.shape[:-1], 1, dtype=torch.float32), x.shape[-1]
        assert size % LANES == 0, size
        pointers = (*self._pointers(grad, x, weight, out), inverses.data_ptr())
        self.library.rms_norm_backward(*pointers, x.numel() // size, size, eps, torch.get_num_threads())
        return out, inverses

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up, (N, I) of (N, 2 I) with the gates first (arXiv:2002.05202)."""
        gate_up, size = gate_up.contiguous(), gate_up.shape[-1] // 2
        assert size % LANES == 0, size
        out = torch.empty(len(gate_up), size, dtype=gate_up.dtype)
        self.library.swiglu(*self._pointers(gate_up, out), len(out), size, torch.get_num_threads())
        return out

    def swiglu_backward(self, grad: Tensor, gate_up: Tensor) -> Tensor:
        """Return the slopes (N, 2 I) for gates and ups, of those (N, I) for what `swiglu` gave."""
        grad, gate_up = grad.contiguous(), gate_up.contiguous()
        assert grad.shape[-1] % LANES == 0, grad.shape
        out = torch.empty(gate_up.shape, dtype=gate_up.dtype)
        self.library.swiglu_backward(*self._pointers(grad, gate_up, out), *grad.shape, torch.get_num_threads())
        return out

    def rotate(self, x: Tensor, rotations: tuple[Tensor, Tensor], turned: int, *, back: bool = False) -> Tensor:
        """Return (N, heads, D) with the first `turned` heads turned by (N, 1, D) cosine and signed sine, or back.

        Source: arXiv:2104.09864.
        """
        x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
        assert all(part.shape == (len(x), 1, x.shape[-1]) for part in rotations)
        pointers = self._pointers(x, *rotations, out)
        rows, heads, width = x.shape
        assert width % (2 * LANES) == 0, width
        direction = -1.0 if back else 1.0
        self.library.rotate(*pointers, rows, heads, turned, width, direction, torch.get_num_threads())
        return out

    def sum_blocks(self, logits: Tensor, temperature: float, *, with_entropy: bool) -> Blocks:
        """Return what `core.drawing.sum_blocks` does, of logits (N, V), in one pass."""
        del with_entropy  # costs nothing
        logits, (rows, size) = logits.contiguous(), logits.shape
        sums = [torch.empty(rows, -(-size // BLOCK), dtype=torch.float32) for _ in range(3)]
        outs = [part.data_ptr() for part in sums]
        self.library.sum_blocks(*self._pointers(logits), temperature, *outs, rows, size, torch.get_num_threads())
        return Blocks(*sums)

    def attend_step(self, new: Heads, memory: Tensor, starts: Tensor, here: int, scale: float) -> Tensor:
        """Append a position to the memory of keys and values, and attend from it.

        Args:
            new: queries (R, heads, D), keys and values (R, key heads, D), views of one (R, heads + 2 key heads, D).
            memory: keys and values (2, at least R, key heads, room, D).
            starts: (R,) long, the first position that each row may read, at most `here`.
            here: the position, below `room`.
            scale: of the scores.

        Returns: (R, heads x D).
        """
        pointers, (rows, heads, key_heads, width) = self._views(new)
        room = memory.shape[3]
        assert memory.shape[1] >= rows
        assert here < room
        assert (starts.dtype, starts.shape) == (torch.long, (rows,))
        starts, out = starts.contiguous(), torch.empty(rows, heads * width, dtype=self.dtype)
        others = (*self._pointers(*memory), starts.data_ptr(), *self._pointers(out))
        sizes = (rows, heads, key_heads, width, room, here, scale, torch.get_num_threads())
        _check(self.library.attend_step(*pointers, *others, *sizes), here + 1)
        return out

    def attend_spans(self, parts: Heads, spans: Tensor, scale: float) -> Tensor:
        """Attend within spans; nothing has to be kept for `attend_spans_backward`.

        Args:
            parts: queries (N, heads, D), keys and values (N, key heads, D), views of one (N, heads + 2 key heads, D).
            spans: (S, 4) long, of all N tokens in their order: start, end, and of the tokens they share (`batch.Span`).
            scale: of the scores.

        Returns: (N, heads x D).
        """
        pointers, (rows, heads, key_heads, width) = self._views(parts)
        out = torch.empty(rows, heads * width, dtype=self.dtype)
        others = (_span_pointer(spans, rows), len(spans), *self._pointers(out))
        sizes = (heads, key_heads, width, scale, torch.get_num_threads())
        _check(self.library.attend_spans(*pointers, *others, *sizes), rows)
        return out

    def attend_spans_backward(self, grad: Tensor, parts: Heads, spans: Tensor, scale: float) -> Tensor:
        """Return the slopes (N, heads + 2 key heads, D) for all parts, of those (N, heads x D) for what was read."""
        pointers, (rows, heads, key_heads, width) = self._views(parts)
        grad, out = grad.contiguous(), torch.empty(rows, heads + 2 * key_heads, width, dtype=self.dtype)
        assert grad.shape == (rows, heads * width)
        others = (_span_pointer(spans, rows), len(spans), *self._pointers(out))
        sizes = (heads, key_heads, width, scale, torch.get_num_threads())
        _check(self.library.attend_spans_backward(*self._pointers(grad), *pointers, *others, *sizes), rows)
        return out

    def tiles(self, weight: Tensor, out: Tensor | None = None, *, is_gated: bool = False) -> Tensor:
        """Return a copy of a weight (out, in) in tiles, for `multiply`: (out / 32, in / 32, 2, 16, 32).

        It is in `out` where that is given, of as many numbers. With `is_gated` each block of 32 outputs has 16 of the
        first half and 16 of the second.
        """
        weight, (outputs, inputs) = weight.contiguous(), weight.shape
        assert outputs % SIDE == inputs % SIDE == 0, weight.shape
        shape = (outputs // SIDE, inputs // SIDE, 2, SIDE // 2, SIDE)
        out = empty_in_large_pages(shape, weight.dtype) if out is None else out.view(shape)
        sizes = (outputs, inputs, is_gated, torch.get_num_threads())
        self.library.lay_tiles(*self._pointers(weight, out), *sizes)
        return out

    def multiply(self, x: Tensor, tiles: Tensor) -> Tensor:
        """Return x weight^T, (N, out) of (N, in) and of a weight in `tiles`, summed in fp32."""
        outputs, inputs = SIDE * tiles.shape[0], SIDE * tiles.shape[1]
        assert x.shape == (len(x), inputs), (x.shape, tiles.shape)
        x, out = x.contiguous(), torch.empty(len(x), outputs, dtype=x.dtype)
        sizes = (len(x), inputs, outputs, torch.get_num_threads())
        if self.library.multiply_tiles(*self._pointers(x, tiles, out), *sizes):
            raise MemoryError(f"no memory for products with {inputs} inputs")
        return out

    def _views(self, parts: Heads) -> tuple[list[int], tuple[int, int, int, int]]:
        """Return where queries, keys and values lie and how far apart their rows are; rows, heads, key heads, width."""
        (rows, heads, width), key_heads = parts[0].shape, parts[1].shape[1]
        stride = (heads + 2 * key_heads) * width
        assert width <= WIDEST
        assert width % LANES == 0, width
        assert all(part.stride() == (stride, width, 1) and part.dtype == self.dtype for part in parts)
        return [*[part.data_ptr() for part in parts], stride], (rows, heads, key_heads, width)

    def _pointers(self, *tensors: Tensor) -> list[int]:
        """Return where tensors lie that have no gaps and the library's type."""
        for tensor in tensors:
            assert tensor.dtype == self.dtype, (tensor.dtype, self.dtype)
            assert tensor.is_contiguous(), tensor.stride()
        return [tensor.data_ptr() for tensor in tensors]


def _span_pointer(spans: Tensor, tokens: int) -> int:
    assert (spans.dtype, spans.shape[1:]) == (torch.long, (4,))
    assert spans.is_contiguous()
    assert int(spans[-1, 1]) == tokens
    return spans.data_ptr()


def _check(failed: int, positions: int) -> None:
    if failed:
        raise MemoryError(f"no memory for the attention of {positions} positions")


def empty_in_large_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return zeros on the CPU, in larger pages where the system has them.

    What is read from memory once a step otherwise waits for the places of its small pages too.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def find(dtype: torch.dtype, device: torch.device, size: int) -> Kernels | None:
    """Return what computes with rows of `size` numbers; None = use torch."""
    return load(dtype) if device.type == "cpu" and dtype in DEFINES and size % LANES == 0 else None


def find_tiles(weight: Tensor) -> Kernels | None:
    """Return what multiplies by a weight (out, in) in tiles; None = use torch."""
    fits = all(size % SIDE == 0 for size in weight.shape)
    found = find(weight.dtype, weight.device, SIDE) if fits else None
    return found if found is not None and found.has_units else None


def find_attention(dtype: torch.dtype, device: torch.device, width: int) -> Kernels | None:
    """Return what attends with heads of a width; None = use torch."""
    return find(dtype, device, width) if width <= WIDEST else None


@cache
def load(dtype: torch.dtype) -> Kernels | None:
    """Return the kernels for fp32 or bf16, compiled now if the cache has none for this processor; None = cannot."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None or os.environ.get("HARKEN_KERNELS") == "0":
        return None
    try:
        return Kernels(ctypes.CDLL(str(_compiled(compiler, DEFINES[dtype]))), dtype)
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(compiler: str, defines: tuple[str, ...]) -> Path:
    """Return the library, from the cache folder or made now."""
    # What the compiler would define tells its version and all that this processor has.
    asked = _run([compiler, *FLAGS, *defines, "-dM", "-E", "-x", "c", os.devnull])
    sources = sorted(SOURCES.iterdir())
    known = [asked, *[path.read_bytes() for path in sources]]
    path = _own_folder() / f"{hashlib.sha256(b''.join(known)).hexdigest()[:16]}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        units = [str(source) for source in sources if source.suffix == ".c"]
        _run([compiler, *FLAGS, *defines, *units, "-o", str(made), "-lm"])
        made.replace(path)  # whole or not at all, also where several processes compile
    return path


def _own_folder() -> Path:
    """Return where the libraries are; nobody else may put one there, as it would run here."""
    folder = cache_folder() / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(f"others than you may write into {folder}")
    return folder


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_S).stdout
