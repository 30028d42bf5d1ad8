"""Ctrl-C: one line, exit code 1, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cli.calling import FP32, call, write_data

SRC = Path(__file__).resolve().parents[2] / "src"
STEPS = 20
# A parent that ignores SIGINT, as a shell does in the background, hands that on; a terminal does not.
RUN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from harken.cli import main; main()"


def rows(path: Path) -> list[int]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def test_ctrl_c_stops_with_one_line_and_the_same_command_goes_on(tmp_path: Path, tiny_model_dir: Path) -> None:
    write_data(tmp_path)
    out = tmp_path / "out"
    arguments = [
        *("ppo", "--model", str(tiny_model_dir), "--prompts", str(tmp_path / "prompts.txt"), "--out", str(out)),
        *("--reward", "lexicon", *FP32, "--set", f"steps={STEPS}", "--set", "prompts_per_step=4"),
        *("--set", "minibatch_size=2", "--set", "sampling.max_new_tokens=8"),
    ]
    env = os.environ | {"PYTHONPATH": str(SRC)}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(rows(out / "metrics.jsonl")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert printed == ""
    assert err.strip().splitlines()[-1] == "stopped; run the same command again to go on"
    assert "Traceback" not in err
    before = rows(out / "metrics.jsonl")
    assert 2 <= len(before) < STEPS
    ended = call(*arguments)
    assert ended.code == 0, ended.err
    assert f"ppo: {STEPS}/{STEPS}" in ended.err
    # Every step once, in order: what was done before was not done again.
    assert rows(out / "metrics.jsonl") == list(range(1, STEPS + 1))
