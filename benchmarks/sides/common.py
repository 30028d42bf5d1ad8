"""What every side of a comparison does: read its job, time its work, print one line of result.

A side is a program: `python benchmarks/sides/SIDE.py JOB.json`. The job names the phase, the file of token ids that all
sides share, and the settings; the last line on standard output starts with `RESULT ` and is JSON. Only the standard
library is imported here, because the sides run in different environments.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULT = "RESULT "


def read_job() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the job named on the command line and the data it points to."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    data = json.loads(Path(job["data"]).read_text(encoding="utf-8"))
    return job, data


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def versions(*names: str) -> dict[str, str]:
    """Return the installed versions of packages, Python's included; packages that are missing are left out."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_bytes() -> int:
    """Return the most memory this process had: on the GPU where torch used one, else its resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # not `ru_maxrss`, which begins at what the process that started this one had
        return 1024 * int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def now() -> float:
    """Return seconds, after the GPU has done what was asked of it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def group_of(completion: Sequence[int], size: int) -> list[list[int]]:
    """Return `size` completions of one prompt for the proof of equal work: the given one, turned by 0, 1, 2, ..."""
    return [[*completion[turn:], *completion[:turn]] for turn in range(size)]


def token_reward(token_ids: Sequence[int]) -> float:
    """Return a reward that costs nothing: the mean of the ids' last two digits, later ones heavier, over 10.

    About 5: large beside what is added to a group's spread before dividing (1e-4 or 1e-6), below where scores are cut.
    """
    count = len(token_ids)
    return sum(token % 100 * (place + 1) for place, token in enumerate(token_ids)) / (5 * count * (count + 1))


def emit(
    name: str,
    *,
    seconds: Sequence[float],
    tokens: Sequence[int],
    proof: dict[str, Any],
    settings: dict[str, Any],
    packages: dict[str, str],
    peak: int | None = None,
) -> None:
    """Print the result line.

    Args:
        name: of the side.
        seconds: of each step, the warm-up steps first.
        tokens: real tokens (no padding) of the same steps.
        proof: what has to be equal on all sides, by name.
        settings: for people.
        packages: name -> version.
        peak: bytes, where they were read before some work that does not count, such as saving.
    """
    row = {
        "side": name,
        "seconds": list(seconds),
        "tokens": list(tokens),
        "peak_bytes": peak_bytes() if peak is None else peak,
        "proof": proof,
        "settings": settings,
        "versions": packages,
    }
    sys.stdout.flush()
    sys.stdout.write(f"\n{RESULT}{json.dumps(row)}\n")
