"""A run folder: what a stage was asked, what it measured, and where it can go on from.

    config.json      the resolved config, complete, re-loadable
    settled.json     what `auto` became on this machine when the run started, if anything was `auto`
    inputs.json      name of each input -> digest
    metrics.jsonl    one row a step
    samples.jsonl    some completions of each step
    checkpoints/     step-00000012/ ... the newest ones
    manifest.json    written last: the stage is finished

A run that was stopped, even by `kill -9`, is resumed by opening the same folder with the same config and inputs: rows
written after the newest checkpoint are dropped, so that a resumed run and an uninterrupted one end with equal files.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harken.artifacts import (
    Manifest,
    artifact_digest,
    atomic_file,
    read_bytes,
    read_json,
    read_manifest,
    storage_errors,
    write_folder_manifest,
    write_json,
)
from harken.config import Config, differences
from harken.errors import DivergenceError, ResumeError

KEEP_CHECKPOINTS = 2


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on all parts; different parts give unrelated random streams."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class Run:
    """One stage's folder, opened to start, resume, or find it finished."""

    def __init__(self, folder: Path, stage: str, config: Config, inputs: Mapping[str, Path | str]) -> None:
        """Open or create the folder.

        Args:
            folder: created if missing.
            stage: name of the stage, stored in the manifest.
            config: the resolved config.
            inputs: name -> path (the digest of what lies there is taken) or a name such as a model id.

        Raises:
            ResumeError: the folder belongs to another config or other inputs; the message lists the differences.
        """
        self.folder = folder
        self.stage = stage
        self.inputs = {name: _digest(value) for name, value in inputs.items()}
        asked = {"stage": stage, "config": config.model_dump(mode="json"), "inputs": self.inputs}
        self._seed = getattr(config, "seed", None)
        path = folder / "config.json"
        if path.exists():
            if changed := differences(read_json(path), asked):
                raise ResumeError(
                    f"{folder}: was started with other settings; choose another --out, delete the folder, or go back "
                    f"to its settings. What differs (there -> now): {'; '.join(changed[:8])}"
                )
        else:
            write_json(path, asked)
        self.step, self.checkpoint_folder = self._newest_checkpoint()
        self._drop_rows_after(self.step)

    @property
    def finished(self) -> Manifest | None:
        """The manifest of a finished run, else None."""
        return read_manifest(self.folder)

    def settle(self, name: str, choose: Callable[[], str]) -> str:
        """Return what was chosen under a name when this run started; `choose` is called at the start only."""
        path = self.folder / "settled.json"
        known: dict[str, str] = read_json(path) if path.exists() else {}
        if name not in known:
            known[name] = choose()
            write_json(path, known)
        return known[name]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row to metrics.jsonl; a value that is not finite stops the run.

        Raises:
            DivergenceError: a metric is NaN or infinite.
        """
        bad = [name for name, value in metrics.items() if not abs(value) < float("inf")]
        if bad:
            raise DivergenceError(
                f"{self.folder}: step {step}: {', '.join(bad)} is not finite; the last good checkpoint is step "
                f"{self.step}; lower the learning rate or clip scores and start a new run from it"
            )
        self._append("metrics.jsonl", {"step": step, **metrics})

    def rows(self) -> list[dict[str, float]]:
        """Return the rows of metrics.jsonl so far."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in read_bytes(path).splitlines()] if path.exists() else []

    def log_sample(self, step: int, row: Mapping[str, object]) -> None:
        """Append one row to samples.jsonl."""
        self._append("samples.jsonl", {"step": step, **row})

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Publish a checkpoint atomically: `write` fills a temporary folder that is then renamed."""
        final = self.folder / "checkpoints" / f"step-{step:08d}"
        temporary = final.with_name(f".{final.name}.tmp")
        with storage_errors(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write(temporary)
            for file in temporary.iterdir():
                handle = os.open(file, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
            os.replace(temporary, final)
        self.step, self.checkpoint_folder = step, final
        for old in sorted(final.parent.glob("step-*"))[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)

    def finish(self, info: Mapping[str, Any] | None = None) -> Manifest:
        """Write the manifest, which marks the run as finished, then remove the checkpoints."""
        manifest = write_folder_manifest(
            self.folder,
            self.stage,
            exclude="checkpoints",
            parents=self.inputs,
            seeds={} if self._seed is None else {"seed": self._seed},
            info=dict(info or {}),
        )
        # In this order, so that a kill in between loses nothing.
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return manifest

    def _newest_checkpoint(self) -> tuple[int, Path | None]:
        folders = sorted((self.folder / "checkpoints").glob("step-*"))
        return (int(folders[-1].name[5:]), folders[-1]) if folders else (0, None)

    def _append(self, name: str, row: Mapping[str, object]) -> None:
        path = self.folder / name
        with storage_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _drop_rows_after(self, step: int) -> None:
        if self.finished:
            return
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.folder / name
            if path.exists():
                # Bytes, since a kill may cut a line inside a character; what follows the last newline is a cut line.
                # Not splitlines(): that would also split at characters which may stand inside a completion.
                whole = read_bytes(path).split(b"\n")[:-1]
                kept = [line for line in whole if json.loads(line)["step"] <= step]
                with atomic_file(path) as file:
                    file.writelines(line + b"\n" for line in kept)


def _digest(value: Path | str) -> str:
    path = Path(value)
    return artifact_digest(path) if str(value) and path.exists() else str(value)


class Timer:
    """Adds up seconds and units of work by phase, for tokens per second."""

    def __init__(self) -> None:
        """Start empty."""
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self._started = time.perf_counter()

    def measure(self, phase: str, tokens: int) -> None:
        """Book the time since the last call (or the start) and `tokens` on `phase`."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._started
        self.tokens[phase] = self.tokens.get(phase, 0) + tokens
        self._started = now

    def rates(self) -> dict[str, float]:
        """Return `tokens_per_s_PHASE` for each phase that had tokens, and `time_s` overall."""
        rates = {
            f"tokens_per_s_{phase}": count / max(self.seconds[phase], 1e-9)
            for phase, count in self.tokens.items()
            if count
        }
        return {**rates, "time_s": sum(self.seconds.values())}
