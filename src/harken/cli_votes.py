"""How `harken collect agreement` shows what it found of comparisons and rankings."""

from collections.abc import Mapping
from typing import Any

from harken.cli_common import interval, table

MAX_JUDGES = 20
"""Rows of the table of judges; `--json` has all."""


def votes_text(found: Mapping[str, Any]) -> str:
    """Return the report on votes as tables."""
    parts = [table(_facts(found))]
    parts.append(_judges(found["judges"]))
    for name, title in (("kinds", "kinds of judges"), ("groups", "groups")):
        groups = found[name]
        if groups is not None and (name == "groups" or len(groups["groups"]) > 1):
            parts.append(f"agreement within and between {title}\n{table(_groups(groups))}")
    if found["models"] is not None:
        parts.append(f"models and rules as judges, beside people\n{table(_models(found['models']))}")
    if found["selection"] is not None:
        parts.append(f"pairs chosen with known chances\n{table(_selection(found['selection']))}")
    if found["probes"] is not None:
        parts.append(f"probes\n{table(_probes(found['probes']))}")
    return "\n\n".join(parts)


def _facts(found: Mapping[str, Any]) -> list[list[str]]:
    position, length = found["position"], found["length"]
    sides = position["sides"]
    rows = [[f"judgments: {name.replace('_', ' ')}", str(count)] for name, count in found["judgments"].items()]
    rows += [["votes on pairs", str(found["num_votes"])]]
    rows += [["pairs", f"{found['num_pairs']}, {found['votes_per_pair']:.2f} votes each"]]
    rows += [["judges", str(found["num_judges"])]]
    rows += [[f"outcome: {name}", str(count)] for name, count in found["outcomes"].items()]
    alpha = "undefined" if found["alpha_nominal"] is None else interval(found["alpha_nominal"])
    rows += [["alpha, nominal [95 % interval]", alpha]]
    rows += [["votes of two judges that agree", _number(found["raw_agreement"])]]
    if found["kendall_tau"] is not None:
        rows += [["Kendall's tau between rankings", _number(found["kendall_tau"])]]
    rows += [["shown first wins", f"{interval(position['shown_first_wins'])}, {_told_p(position['p'])}"]]
    rows += [["shown first, logits by the scores", interval(position["logits"])]]
    rows += [["sides drawn fairly, chi-square", f"{_number(sides['chi_square'])}, {_told_p(sides['p'])}"]]
    rows += [["longer wins", interval(length["longer_wins"])]]
    for stratum in length["strata"]:
        label = f"longer wins, lengths {stratum['from']:.0%} to {stratum['to']:.0%} apart"
        rows += [[label, interval(stratum["longer_wins"])]]
    for name, coefficient in length["coefficients"].items():
        rows += [[f"{name}, logits", f"{interval(coefficient)}, {_told_p(coefficient['p'])}"]]
    return rows


def _judges(judges: list[dict[str, Any]]) -> str:
    """Return a table of the judges with the most votes."""
    has_gold, has_time = "gold" in judges[0], any(row["median_seconds"] is not None for row in judges)
    head = ["judge", "votes", "ties", "agrees with others", "reliability", "shown first wins", "q"]
    head += ["gold"] * has_gold + ["seconds"] * has_time
    rows = [head]
    for row in sorted(judges, key=lambda row: -row["votes"])[:MAX_JUDGES]:
        cells = [
            row["judge"],
            str(row["votes"]),
            f"{row['tie_share']:.0%}",
            interval(row["agreement"]),
            interval(row["reliability"]),
            _number(row["shown_first_wins"]["value"]),
            _p(row["shown_first_q"]),
        ]
        if has_gold:
            cells.append(f"{_number(row['gold']['value'])} of {row['gold']['n']}")
        if has_time:
            cells.append(_number(row["median_seconds"]))
        rows.append(cells)
    more = len(judges) - MAX_JUDGES
    return table(rows) + (f"\nand {more} judges with fewer votes: --json shows all" if more > 0 else "")


def _groups(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [f"within {name}", f"{group['judges']} judges", _number(group["agreement"])]
        for name, group in found["groups"].items()
    ]
    rows += [["within groups", "", _number(found["within"])], ["between groups", "", _number(found["between"])]]
    rows += [["permutation test of the difference", "", f"{_told_p(found['p'])}"]]
    if shift := found.get("shift"):
        rows += [
            [f"weight of differences, {name} less others", "", f"{interval(group['shift'])}, q = {_p(group['q'])}"]
            for name, group in shift.items()
        ]
    if found["judges_left_out"]:
        rows += [["left out: no group, or a small one", f"{found['judges_left_out']} judges", ""]]
    return rows


def _models(found: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["judge", "votes", "agrees with people", "kappa", "fit to stand in for people"]]
    for row in found:
        fit = "-" if row["admissible"] is None else "yes" if row["admissible"] else "no"
        rows.append([row["judge"], str(row["votes"]), _number(row["agreement"]), _number(row["kappa"]), fit])
    people = found[0]["people"]
    return [*rows, ["people with people", "", _number(people["agreement"]), _number(people["kappa"]), ""]]


def _selection(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["", "pairs", "among those chosen", "estimated for all"]]
    told = {"votes of two judges that agree": found["agreement"]} if found["agreement"] else {}
    for name, one in {**told, **{f"wins, {name}": one for name, one in found["wins"].items()}}.items():
        rows.append([name, str(one["num_pairs"]), interval(one["chosen_pairs"]), interval(one["all_pairs"])])
    even = f"{found['effective_pairs']:.0f}"
    return [*rows, ["as good as so many pairs chosen evenly", even, "", ""]]


def _probes(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["kind", "probes", "tempted", "baseline", "p"]]
    for kind, probe in found.items():
        cells = [kind, str(probe["probes"]), interval(probe["tempted"]), interval(probe["baseline"]), _p(probe["p"])]
        rows.append(cells)
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _told_p(value: float | None) -> str:
    return f"p {_p(value)}" if value is not None and value < 1e-4 else f"p = {_p(value)}"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"
