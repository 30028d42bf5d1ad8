"""What this machine can do, measured: matrix rate, memory bandwidth, memory in use."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from harken.lm.products import linear

try:
    import resource
except ModuleNotFoundError:  # Windows has none
    resource = None

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_seconds(work: Callable[[], object], device: torch.device, *, runs: int = 3) -> float:
    """Return the shortest of some runs, after one that is not counted."""
    found: list[float] = []
    for _ in range(runs + 1):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])


@cache
def matrix_rate(dtype: torch.dtype, device: torch.device, *, size: int | None = None) -> float:
    """Return floating-point operations a second of a square matrix product, best of three; measured once a process.

    Args:
        dtype: of the matrices.
        device: where.
        size: rows and columns; by default 1024 on a CPU (well under 0.3 s), 8192 on a GPU, which needs more to be busy.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: linear(left, right), device)


@cache
def memory_bandwidth(device: torch.device, *, num_bytes: int = 2**28) -> float:
    """Return bytes read a second, best of three sums over a tensor that no cache holds; measured once a process."""
    data = torch.ones(num_bytes // 4, device=device)
    return num_bytes / best_seconds(data.sum, device)


def _status(key: str) -> int | None:
    """Return a line of Linux's /proc/self/status in bytes; None on other systems."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use since the start or the last `reset_peak_memory`.

    On a GPU what torch allocated there; else the resident set of this process, libraries included (0 where the system
    does not tell).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (found := _status("VmHWM")) is not None or resource is None:
        return found or 0
    # Others count in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device) -> bool:
    """Start measuring the peak anew; return whether the system allows it (else it stays that of the whole process)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError):
        CLEAR.write_text("5", encoding="ascii")
        return True
    return False


def memory_in_use(device: torch.device) -> int:
    """Return bytes in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or peak_memory(device)


def available_memory(device: torch.device) -> int:
    """Return bytes that could still be taken without swapping; 8 GiB where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found: list[int] = []
    if hasattr(os, "sysconf"):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - memory_in_use(device)]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = meminfo.read_text(encoding="ascii").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    # A container may be allowed less than the machine has.
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with suppress(OSError, ValueError):
        found.append(int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")))
    return max(0, min(found, default=2**33))
