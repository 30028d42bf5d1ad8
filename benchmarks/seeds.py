"""Run a recipe with several seeds and print what each achieved, as the table of docs/results.md.

    python benchmarks/seeds.py reviews --seeds 0 1 2 --out out/seeds

A seed decides the split of the texts, the pairs, the order of training and every draw, so each run has other held-out
texts. Runs that are finished are only read.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from harken.artifacts import read_json

COLUMNS = (
    "seed",
    "reward model right, difference >= 1",
    "lexicon, SFT",
    "lexicon, policy",
    "rise [95 %]",
    "win rate, lexicon",
    "sequence KL, nats",
    "distinct-2, policy / SFT",
    "seconds",
)


def main() -> None:
    """Run the seeds one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/seeds"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    for seed in arguments.seeds:
        folder = arguments.out / f"{arguments.recipe}-{seed}"
        changes = [part for change in (f"seed={seed}", *arguments.changes) for part in ("--set", change)]
        command = ["harken", "run", arguments.recipe, "--out", str(folder), *changes]
        subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=True)
        rows.append(row(seed, folder))
    for line in (COLUMNS, ("---",) * len(COLUMNS), *rows):
        sys.stdout.write(f"| {' | '.join(line)} |\n")


def row(seed: int, folder: Path) -> tuple[str, ...]:
    """Return one line of the table from a run folder."""
    found = read_json(folder / "evaluate" / "evaluation.json")
    reward = read_json(folder / "reward" / "evaluation.json")["accuracy_difference_1_or_more"]
    policy, against = found["policy"], found["against"]
    return (
        str(seed),
        f"{interval(reward, '.1%')} of {reward['n']}",
        f"{against['lexicon']['value']:.3f}",
        f"{policy['lexicon']['value']:.3f}",
        interval(found["difference"]["lexicon"], "+.3f"),
        interval(found["win_rate"]["lexicon"], ".1%"),
        interval(policy["kl_sequence"], ".1f"),
        f"{policy['distinct_2']['value'] / against['distinct_2']['value']:.2f}",
        f"{sum(read_json(folder / 'run.json')['seconds'].values()):.0f}",
    )


def interval(estimate: dict[str, Any], form: str) -> str:
    """Return `value [low, high]`."""
    return f"{estimate['value']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


if __name__ == "__main__":
    main()
