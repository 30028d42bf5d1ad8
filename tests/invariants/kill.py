"""Run work in a process of its own and kill it (SIGKILL) at some moment."""

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

SIGKILL = 9
TIMEOUT_S = 120.0


def server() -> ForkServerContext:
    """Return a context whose processes start in milliseconds, with torch already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harken.pipeline"])
    return context


def run(context: ForkServerContext, work: Callable[..., Any], *arguments: Any, kill_after: float | None = None) -> bool:
    """Run `work` in a process; return whether it ended by itself rather than by our kill."""
    process = context.Process(target=work, args=arguments)
    process.start()
    process.join(TIMEOUT_S if kill_after is None else kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode in {0, -SIGKILL}, f"the work failed with {process.exitcode}; its error is printed above"
    return process.exitcode == 0


def seconds(context: ForkServerContext, work: Callable[..., Any], *arguments: Any) -> float:
    """Return how long `work` takes in a process."""
    started = time.perf_counter()
    assert run(context, work, *arguments), f"took longer than {TIMEOUT_S} s"
    return time.perf_counter() - started


def killed_and_resumed(
    context: ForkServerContext, rng: random.Random, span: float, work: Callable[..., Any], *arguments: Any
) -> int:
    """Kill `work` at two random moments within `span` seconds, then let it end; return how many kills hit."""
    kills = sum(not run(context, work, *arguments, kill_after=rng.uniform(0, span)) for _ in range(2))
    assert run(context, work, *arguments)
    return kills
