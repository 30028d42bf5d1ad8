"""Run the same work with Harken and with a peer, alternating, and print seconds, tokens/s, peak memory and the ratio.

    python benchmarks/run.py sampling                   Hugging Face generate, fp32 and bf16
    python benchmarks/run.py sampling --peer vllm
    python benchmarks/run.py sampling --curve           Harken alone: cost by rows and by tokens
    python benchmarks/run.py reward-lora                a plain PEFT loop on `reviews` pairs
    python benchmarks/run.py sft | reward | dpo         TRL, full fine-tuning
    python benchmarks/run.py ppo --tune half lora full         TRL 1.12.0, beside Harken with adapters on the upper half
                  of the layers (its default), on all, and with all weights and a critic of its own
    python benchmarks/run.py grpo | rloo --tune half full       TRL, a reward that costs nothing

First it is proven in fp32, on the first rows, that both sides do the same: losses of the first two steps within 1e-3,
greedy completions for sampling, the metrics of the first update for ppo, grpo and rloo. Then each side runs by turns in
a process of its own. The first step of each process warms up and does not count. Both sides must count the same tokens,
and as many as the data file has, so nothing was cut. Peers are installed on demand, each into its own virtual
environment.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comparison import as_dicts, best_peer, differences, line_through, summarize, text_table, timed, token_differences
from phases import PHASES, Peer, Phase
from selection import data_folder, demonstration_rows, fixed_rows, hh_pairs, pair_rows, prompt_rows, step_tokens
from venvs import interpreter

from harken.artifacts import read_records, write_json
from harken.config import ChatConfig, CollectConfig, ComputeConfig, PreferencesConfig
from harken.errors import HarkenError, SelfTestError, UsageError
from harken.lm.load import load_model
from harken.lm.trunk import Trunk
from harken.pipeline import collect, machine, prepare
from harken.records import PreferencePair
from harken.runs import derive_seed

SIDES = Path(__file__).resolve().parent / "sides"
SOURCE = Path(__file__).resolve().parent.parent / "src"
HARKEN = "Harken"
CHECK_ROWS = 2
SAMPLING_PROMPT = 64
PPO_PROMPT = 128
OPTIMIZER = {
    "learning_rate": 1e-5,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "warmup_fraction": 0.0,
    "schedule": "constant",
}


def main() -> None:
    """Read the command line, compare, print and write."""
    arguments = parse()
    phase = PHASES[arguments.phase].changed(
        rows=arguments.rows,
        steps=arguments.steps,
        new_tokens=arguments.new_tokens,
    )
    try:
        report = curve(phase, arguments) if arguments.curve else compare(phase, arguments)
    except HarkenError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    if arguments.out:
        write_json(arguments.out, report)


def parse() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=sorted(PHASES))
    parser.add_argument("--peer", help="which peer, where a phase has several (the first by default)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side")
    parser.add_argument("--rows", type=int, help="rows of a step, instead of the phase's own number")
    parser.add_argument("--steps", type=int, help="timed steps of a run")
    parser.add_argument("--new-tokens", type=int, help="drawn tokens, for sampling and ppo")
    parser.add_argument(
        "--tune", nargs="+", choices=["lora", "half", "third", "full"], help="what Harken trains; each has a table"
    )
    parser.add_argument("--dtype", default="auto", help="of Harken when it is measured: auto, float32, bfloat16")
    parser.add_argument("--peer-dtype", help="of the peer, instead of each variant's own: float32 where bf16 is slower")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    parser.add_argument("--variants", type=int, help="only the first so many ways of setting the peer")
    parser.add_argument("--check-only", action="store_true", help="prove equal work and stop")
    parser.add_argument("--curve", action="store_true", help="sampling with Harken alone, by rows and by new tokens")
    parser.add_argument("--curve-rows", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--curve-tokens", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--work", type=Path, default=Path("out/benchmarks"), help="folder for data files and scratch")
    parser.add_argument("--out", type=Path, help="write the report here, as JSON")
    return parser.parse_args()


def compare(phase: Phase, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prove equal work, run the sides by turns, print the table; return the report."""
    name = arguments.peer or next(iter(phase.peers))
    if name not in phase.peers:
        raise UsageError(f"phase {phase.name} has no peer {name!r}; there are: {', '.join(phase.peers)}")
    variants = phase.peers[name][: arguments.variants]
    data = select(phase, arguments.work)
    ours = {f"{HARKEN}, {tune}": phase.changed(tune=tune) for tune in arguments.tune or [phase.tune]}
    for one in ours.values():
        prove(one, variants[0], data, arguments)
    if arguments.check_only:
        return {"phase": phase.name, "equal_work": True}
    file = write_data(arguments.work / f"{phase.name}.json", data)
    sides = [*((side, one, None) for side, one in ours.items()), *((peer.name, phase, peer) for peer in variants)]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side, _, _ in sides}
    expected = step_tokens(data["rows"], phase.rows) if "chosen" in data["rows"][0] else None
    for turn in range(arguments.runs):
        for side, one, peer in sides:
            result = run_side(one, peer, file, arguments, check=False)
            seconds, tokens = timed(result, phase.warmup)
            say(f"run {turn + 1}/{arguments.runs}  {side}: {seconds:.2f} s, {tokens / seconds:.0f} tokens/s")
            runs[side].append(result)
        latest = {side: results[-1] for side, results in runs.items()}
        if problems := token_differences(latest, expected):
            raise SelfTestError("the sides did not do the same work: " + "; ".join(problems))
    tables: list[dict[str, Any]] = []
    for side, one in ours.items():
        against = {side: runs[side], **{peer.name: runs[peer.name] for peer in variants}}
        rows = summarize(against, warmup=phase.warmup, items=phase.rows * phase.steps)
        say(f"\n{title(one)}\n\n{text_table(rows, phase.unit)}\n")
        best = best_peer(rows)
        tables.append(
            {
                "tune": one.tune,
                "ratio": best and best.times_slower,
                "memory_ratio": best and best.times_memory,
                "rows": as_dicts(rows),
            }
        )
    for side, results in runs.items():
        say(f"{side}: {described(results[0]['settings'])}; {described(results[0]['versions'])}")
    return {**facts(phase, arguments), "peer": name, "tables": tables, "runs": runs}


def prove(phase: Phase, peer: Peer, data: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Run both sides on few rows in fp32 and insist that they find the same.

    Raises:
        SelfTestError: they do not; the message says what differs.
    """
    rows = min(phase.rows, CHECK_ROWS)
    small = phase.changed(rows=rows, new_tokens=min(phase.new_tokens, 8), steps=1, warmup=0)
    steps = 2 if "chosen" in data["rows"][0] else 1
    part = [dict(row) if isinstance(row, dict) else row for row in data["rows"][: rows * steps]]
    for row in part:
        if isinstance(row, dict) and "completion" in row:
            row["completion"] = row["completion"][: small.new_tokens]
    file = write_data(arguments.work / f"{phase.name}-check.json", {**data, "rows": part})
    found = {
        side: run_side(small, other, file, arguments, check=True) for side, other in ((HARKEN, None), (peer.name, peer))
    }
    problems = differences({side: result["proof"] for side, result in found.items()})
    if problems:
        raise SelfTestError(f"{phase.name}: the sides do not do the same work in fp32: " + "; ".join(problems))
    for key, value in found[HARKEN]["proof"].items():
        theirs = found[peer.name]["proof"][key]
        say(f"equal in fp32: {key}" + ("" if key == "greedy" else f" {value:.5f} and {theirs:.5f}"))


def run_side(
    phase: Phase, peer: Peer | None, data: Path, arguments: argparse.Namespace, *, check: bool
) -> dict[str, Any]:
    """Run one side in a process of its own and return its result line.

    Raises:
        SelfTestError: it failed; its last lines are in the message.
    """
    scratch = arguments.work.resolve() / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    job = {
        "phase": phase.name,
        "check": check,
        "data": str(data.resolve()),
        "scratch": str(scratch),
        "dtype": "float32" if check else arguments.dtype if peer is None else arguments.peer_dtype or peer.dtype,
        "weights": "float32" if check or peer is None else peer.weights,
        "options": {} if peer is None else peer.options,
        "batch_size": phase.rows,
        "steps": phase.steps,
        "warmup": phase.warmup,
        "new_tokens": phase.new_tokens,
        "max_length": phase.max_length,
        "tune": phase.tune,
        "template": phase.template,
        "epochs": phase.epochs,
        "group": phase.group,
        "optimizer": OPTIMIZER,
    }
    file = scratch / "job.json"
    write_json(file, job)
    python = Path(sys.executable) if peer is None else interpreter(peer.venv, say)
    script = SIDES / ("harken_side.py" if peer is None else peer.script)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(arguments.threads),
        "MKL_NUM_THREADS": str(arguments.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(SOURCE) if peer is None else "",
    }
    done = subprocess.run(
        [str(python), str(script), str(file)], env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise SelfTestError(f"{script.name} failed with exit code {done.returncode}; its last lines:\n{last}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def select(phase: Phase, work: Path) -> dict[str, Any]:
    """Return model, padding token, head and rows of a phase, the same on every call."""
    say(f"{phase.name}: choosing the data")
    loaded = load_model(
        "smollm2", compute=ComputeConfig(dtype="bfloat16"), chat=ChatConfig(template=phase.template), notify=say
    )
    chat, tokenizer = loaded.chat, loaded.chat.tokenizer
    steps = phase.warmup + phase.steps
    match phase.name:
        case "sampling":
            rows: list[Any] = fixed_rows(chat, hh_pairs(data_folder()), phase.rows, SAMPLING_PROMPT)
        case "reward-lora":
            rows = pair_rows(chat, review_pairs(work), phase.rows * steps, phase.max_length)
        case "ppo" | "grpo" | "rloo":
            rows = prompt_rows(chat, hh_pairs(data_folder()), phase.rows, PPO_PROMPT, phase.new_tokens)
        case _:
            rows = pair_rows(chat, hh_pairs(data_folder()), phase.rows * steps, phase.max_length)
    if phase.name == "sft":
        rows = demonstration_rows(rows)
    pad_token = tokenizer.unk_token  # `<|endoftext|>`: unlike the model's own padding token, it ends no turn
    pad_id = tokenizer.convert_tokens_to_ids(pad_token)
    assert not any(pad_id in ids for row in rows for ids in token_lists(row)), "the padding token stands in a text"
    # The head that `train_reward` draws for its role with seed 0; the peers get the same.
    trunk = Trunk(loaded)
    trunk.add_role("reward", None, seed=derive_seed(0, "adapters"), head=True)
    head = trunk.state("reward")["head.weight"][0].tolist()
    data = {"model": loaded.model.name_or_path, "pad_token": pad_token, "pad_id": pad_id, "head": head, "rows": rows}
    del loaded, trunk
    gc.collect()
    return data


def token_lists(row: Any) -> list[list[int]]:
    """Return the lists of token ids in a row."""
    if isinstance(row, dict):
        return [row[key] for key in ("prompt", "chosen", "rejected", "completion") if key in row]
    return [row]


def review_pairs(work: Path) -> list[PreferencePair]:
    """Return the training pairs of the recipe `reviews`, made once."""
    export = collect(CollectConfig(), work / "reviews" / "collect")
    files = prepare(PreferencesConfig(heldout_fraction=0.12, max_pairs=3000), export, work / "reviews" / "preferences")
    return [pair for pair in read_records(files["pairs"], PreferencePair) if pair.split == "train"]


def curve(phase: Phase, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time Harken's sampler by rows and by new tokens; print seconds, time a token, and how far from linear it is."""
    points: list[dict[str, Any]] = []
    by_rows = [(rows, phase.new_tokens) for rows in arguments.curve_rows]
    by_tokens = [(phase.rows, tokens) for tokens in arguments.curve_tokens]
    data = select(phase.changed(rows=max([phase.rows, *arguments.curve_rows])), arguments.work)
    for rows, tokens in dict.fromkeys([*by_rows, *by_tokens]):
        one = phase.changed(rows=rows, new_tokens=tokens)
        file = write_data(arguments.work / "curve.json", {**data, "rows": data["rows"][:rows]})
        result = run_side(one, None, file, arguments, check=False)
        seconds, drawn = timed(result, phase.warmup)
        points.append({"rows": rows, "new_tokens": tokens, "seconds": seconds, "peak_bytes": result["peak_bytes"]})
        say(f"{rows} rows x {tokens} new tokens: {seconds:.2f} s, {1000 * seconds / drawn:.2f} ms a token")
    report = {**facts(phase, arguments), "points": points}
    for axis, fixed in (("rows", "new_tokens"), ("new_tokens", "rows")):
        level = phase.new_tokens if fixed == "new_tokens" else phase.rows
        chosen = [point for point in points if point[fixed] == level]
        if len(chosen) > 2:
            start, slope, worst = line_through([p[axis] for p in chosen], [p["seconds"] for p in chosen])
            report[f"linear_in_{axis}"] = {"intercept_s": start, "slope_s": slope, "worst_relative_error": worst}
            say(f"by {axis}: {start:.2f} s + {1000 * slope:.1f} ms for each; farthest point {worst:.0%} from that line")
    return report


def facts(phase: Phase, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured, where and when."""
    return {
        "phase": phase.name,
        "rows_per_step": phase.rows,
        "timed_steps": phase.steps,
        "warmup_steps": phase.warmup,
        "new_tokens": phase.new_tokens,
        "max_length": phase.max_length,
        "optimizer": OPTIMIZER,
        "threads": arguments.threads,
        "command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "machine": {**machine(), "system": platform.platform()},
        "date": datetime.now(UTC).date().isoformat(),
    }


def title(phase: Phase) -> str:
    """Return one line that says what was measured."""
    new = f" x {phase.new_tokens} new tokens" if phase.name in ("sampling", "ppo") else ""
    return (
        f"{phase.name}: {phase.steps} timed step(s) of {phase.rows} {phase.unit}{new}, {phase.tune}; the first "
        f"{phase.warmup} step(s) of each process warm up and do not count; the fastest way of setting the peer counts"
    )


def described(values: dict[str, Any]) -> str:
    """Return `name value, name value`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def write_data(path: Path, data: dict[str, Any]) -> Path:
    """Write what all sides read."""
    write_json(path, data)
    return path


def say(message: str) -> None:
    """Print one line for people."""
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
