"""The pure parts of benchmarks/: what counts as equal work, medians and ratios, and which data is taken."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.comparison import (
    best_peer,
    differences,
    line_through,
    summarize,
    text_table,
    timed,
    token_differences,
)
from benchmarks.phases import PHASES
from benchmarks.selection import (
    HH_FILE,
    choose,
    demonstration_rows,
    fixed_rows,
    hh_pairs,
    pair_rows,
    prompt_rows,
    split_dialogue,
    step_tokens,
)
from benchmarks.walks import LENGTH, NODES, check, distances_to_goal, make_graph
from harken.errors import DataError
from harken.lm.chat import Chat
from tests.tiny import make_tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent


def result(seconds: list[float], tokens: list[int], peak: float) -> dict[str, Any]:
    return {"seconds": seconds, "tokens": tokens, "peak_bytes": peak}


def test_the_warm_up_steps_do_not_count() -> None:
    assert timed(result([100.0, 2.0, 3.0], [7, 10, 20], 1), 1) == (5.0, 30)


def test_a_run_of_warm_up_only_is_refused() -> None:
    with pytest.raises(AssertionError, match="behind its warm-up"):
        timed(result([1.0], [1], 1), 1)


def test_ratios_are_of_medians_and_the_fastest_peer_counts() -> None:
    rows = summarize(
        {
            # Timed steps: 2, 4, 3 -> median 3, and 30 tokens: 10 tokens/s, 6 items: 2 a second.
            "Harken": [result([9, 2], [5, 30], 1e9), result([9, 4], [5, 30], 3e9), result([9, 3], [5, 30], 2e9)],
            # 12, 12, 30 -> median 12: 4 times slower; 8 GB against 2: 4 times the memory.
            "slow": [result([1, 12], [5, 30], 8e9), result([1, 30], [5, 30], 8e9), result([1, 12], [5, 30], 8e9)],
            # 6: 2 times slower; 1 GB: half the memory.
            "fast": [result([1, 6], [5, 30], 1e9)] * 3,
        },
        warmup=1,
        items=6,
    )
    harken, slow, fast = rows
    assert (harken.seconds, harken.seconds_least, harken.seconds_most) == (3, 2, 4)
    assert (harken.tokens_per_s, harken.items_per_s, harken.peak_gb) == (10.0, 2.0, 2.0)
    assert (slow.times_slower, slow.times_memory) == (4.0, 4.0)
    assert (fast.times_slower, fast.times_memory) == (2.0, 0.5)
    assert best_peer(rows) is fast
    assert best_peer(rows[:1]) is None
    table = text_table(rows, "rows")
    assert "| Harken | 3.00 (2.00-4.00) | 10 | 2 | 2.00 GB |  |  |" in table
    assert "| **2.00 x** | **1/0.50** |" in table
    assert "| 4.00 x | 1/4.00 |" in table


def test_losses_within_a_thousandth_are_equal() -> None:
    assert differences({"Harken": {"loss": 0.6931}, "TRL": {"loss": 0.6931 + 9e-4}}) == []
    assert differences({"Harken": {"loss": -400.0}, "TRL": {"loss": -400.3}}) == []  # 7.5e-4 of 400


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"loss": 0.6951}, "loss: Harken 0.693100, TRL 0.695100"),
        ({"loss": float("nan")}, "nan"),
        ({"loss": 0.6931, "gradient": 1.0}, "'gradient' was reported by TRL only"),
        ({}, "nothing that could be compared"),
    ],
)
def test_what_differs_is_said(theirs: dict[str, float], said: str) -> None:
    assert said in "; ".join(differences({"Harken": {"loss": 0.6931}, "TRL": theirs}))


def test_greedy_completions_may_differ_late_but_not_at_the_first_token() -> None:
    ours = [[row, *range(19)] for row in range(2)]
    late = [ours[0], [*ours[1][:-3], 90, 91, 92]]  # 3 of 40 tokens
    first = [ours[0], [99, *ours[1][1:]]]
    many = [ours[0], [*ours[1][:10], *range(50, 60)]]  # 10 of 40
    short = [ours[0], ours[1][:-1]]
    assert differences({"Harken": {"greedy": ours}, "peer": {"greedy": late}}) == []
    for theirs, said in ((first, "first tokens"), (many, "75%"), (short, "different numbers")):
        assert said in differences({"Harken": {"greedy": ours}, "peer": {"greedy": theirs}})[0]


def test_a_side_that_cut_a_text_is_found() -> None:
    whole, cut = result([1, 1], [100, 90], 1), result([1, 1], [100, 88], 1)
    assert token_differences({"Harken": whole, "TRL": whole}, [100, 90]) == []
    assert token_differences({"Harken": whole, "TRL": cut}, None) == [
        "tokens of each step: Harken [100, 90], TRL [100, 88]"
    ]
    # Both sides cut: only the data file tells.
    assert len(token_differences({"Harken": cut, "TRL": cut}, [100, 90])) == 2


def test_the_line_through_points_of_linear_cost_fits() -> None:
    intercept, slope, worst = line_through([8, 16, 32], [1.8, 2.6, 4.2])  # 1 + 0.1 x
    assert intercept == pytest.approx(1.0)
    assert slope == pytest.approx(0.1)
    assert worst < 1e-9
    assert line_through([1, 2, 3], [1, 4, 9])[2] > 0.3  # squares lie on no line


def test_every_side_and_every_list_of_requirements_is_there() -> None:
    for phase in PHASES.values():
        for variants in phase.peers.values():
            for peer in variants:
                assert (ROOT / "benchmarks" / "sides" / peer.script).is_file()
                assert (ROOT / "benchmarks" / f"requirements-{peer.venv}.txt").is_file()


def test_torch_is_pinned_in_every_list_of_requirements() -> None:
    for path in (ROOT / "benchmarks").glob("requirements-*.txt"):
        if not path.stem.endswith("nodeps"):
            assert "torch==2.13.0" in path.read_text().splitlines(), path.name


def dialogue(*turns: str) -> str:
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[index % 2]}: {turn}" for index, turn in enumerate(turns))


def test_a_dialogue_is_split_before_its_last_answer() -> None:
    found = split_dialogue(dialogue("Hi", "Hello", "How?", "So."))
    assert found is not None
    messages, answer = found
    assert [(message.role, message.content) for message in messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "How?"),
    ]
    assert answer == "So."


@pytest.mark.parametrize("text", ["", dialogue("Hi"), dialogue("Hi", ""), "\n\nHuman: a\n\nHuman: b"])
def test_a_dialogue_that_does_not_end_with_an_answer_is_left_out(text: str) -> None:
    assert split_dialogue(text) is None


def write_pairs(folder: Path, rows: list[tuple[str, str]]) -> None:
    path = folder / HH_FILE
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n" for chosen, rejected in rows)


def many_pairs(count: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    words = [f"{row} {'ab'[row % 2] * rng.randint(1, 60)}" for row in range(count)]
    return [(dialogue(f"question {word}", f"good {word}"), dialogue(f"question {word}", "bad")) for word in words]


def test_pairs_with_two_prompts_or_two_equal_sides_are_left_out(tmp_path: Path) -> None:
    good = (dialogue("Hi", "Hello"), dialogue("Hi", "Go"))
    two_prompts = (dialogue("Hi", "Hello"), dialogue("Ho", "Go"))
    equal = (dialogue("Hi", "Hello"), dialogue("Hi", "Hello"))
    write_pairs(tmp_path, [two_prompts, good, equal])
    (pair,) = hh_pairs(tmp_path)
    assert (pair.chosen.content, pair.rejected.content) == ("Hello", "Go")


def test_the_same_data_is_chosen_every_time_and_all_of_it_fits(tmp_path: Path) -> None:
    write_pairs(tmp_path, many_pairs(60))
    pairs = hh_pairs(tmp_path)
    chat = Chat(make_tiny_tokenizer())
    rows = pair_rows(chat, pairs, 20, 150)
    assert rows == pair_rows(Chat(make_tiny_tokenizer()), hh_pairs(tmp_path), 20, 150)
    assert len({row["record"]["id"] for row in rows}) == 20
    assert [row["record"]["id"] for row in rows] != [pair.id for pair in pairs[:20]]  # drawn, not the first ones
    for row in rows:
        assert len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) <= 150
        assert row["chosen"][-1] == row["rejected"][-1] == chat.end_id  # nothing cut
    with pytest.raises(DataError, match="60 texts have up to 1000 tokens, 61 are wanted"):
        pair_rows(chat, pairs, 61, 1000)


def test_demonstrations_are_the_chosen_sides_of_the_same_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path, many_pairs(8))
    rows = pair_rows(Chat(make_tiny_tokenizer()), hh_pairs(tmp_path), 4, 1000)
    for row, made in zip(rows, demonstration_rows(rows), strict=True):
        assert made["prompt"] == row["prompt"]
        assert made["chosen"] == row["chosen"]
        assert made["record"]["completion"] == row["record"]["chosen"]


def test_prompts_are_distinct_and_their_completions_have_the_size_asked_for(tmp_path: Path) -> None:
    write_pairs(tmp_path, [*many_pairs(40), *many_pairs(40)])  # each prompt twice
    chat, pairs = Chat(make_tiny_tokenizer()), hh_pairs(tmp_path)
    rows = prompt_rows(chat, pairs, 10, 200, 12)
    assert len({tuple(row["prompt"]) for row in rows}) == 10
    assert {len(row["completion"]) for row in rows} == {12}
    fixed = fixed_rows(chat, pairs, 10, 12)
    assert len(set(map(tuple, fixed))) == 10


def test_choosing_leaves_out_what_is_too_long() -> None:
    assert sorted(choose("abcd", [1, 9, 2, 3], 3, 3)) == ["a", "c", "d"]


def test_the_tokens_of_a_step_count_the_prompt_with_each_completion() -> None:
    pair = {"prompt": [1, 2], "chosen": [3], "rejected": [4, 5, 6]}  # 2 + 1 + 2 + 3 = 8
    demonstration = {"prompt": [1, 2], "chosen": [3]}  # 3
    assert step_tokens([pair, pair, pair], 2) == [16, 8]
    assert step_tokens([demonstration] * 2, 2) == [6]


def test_the_random_walks_are_those_of_trlx() -> None:
    graph = make_graph()
    scores = [graph.optimality(walk) for walk in graph.walks]
    assert sum(scores) / len(scores) == pytest.approx(0.352, abs=5e-4)
    assert (len(graph.walks), max(map(len, graph.walks)), len(graph.starts)) == (1000, LENGTH, NODES - 1)
    assert min(scores) == 0.0
    assert max(scores) == 1.0


def test_the_optimality_of_a_walk() -> None:
    graph = make_graph()
    # A line d -> c -> b -> a would be 4 nodes long; nodes that lead nowhere count as 10.
    edges = np.zeros((NODES, NODES), dtype=bool)
    edges[[3, 2, 1, 0], [2, 1, 0, 0]] = True
    assert distances_to_goal(edges)[:5] == (1, 2, 3, 4, LENGTH)
    start = next(node for node in range(1, NODES) if graph.distances[node] == 3)
    via = next(node for node in range(NODES) if graph.edges[start, node] and graph.edges[node, 0])
    best = chr(97 + start) + chr(97 + via) + "a"
    assert graph.optimality(best) == graph.optimality(best + "zzz") == 1.0
    assert graph.optimality(best[:2]) == graph.optimality(best[0]) == graph.optimality(best[0] + "z") == 0.0
    stranger = next(node for node in range(1, NODES) if not graph.edges[start, node])
    assert graph.optimality(best[0] + chr(97 + stranger) + "a") == 0.0


def test_what_is_wanted_of_random_walks_is_said_of_what_was_run() -> None:
    found = {
        "imitation": {"optimality": 0.35},
        "ilql": {"optimality": {"beta 1": 0.4, "beta 100": 0.49}},
        "ppo": {"optimality": 0.96},
        "nlpo": {"optimality": 0.97},
    }
    assert list(check(found).values()) == [True, False, True]
    assert list(check({"imitation": found["imitation"], "ppo": {"optimality": 0.94}}).values()) == [False]
    assert list(check(found | {"nlpo": {"optimality": 0.94}}).values())[-1] is False
    assert check({"imitation": found["imitation"]}) == {}
