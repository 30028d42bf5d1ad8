"""Label Studio's labeling config: which control is about which text, and the scales of ratings."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

from harken.artifacts import read_bytes
from harken.errors import DataError
from harken.records import RatedAxis

_MAX_CONFIG = 1 << 20


@dataclass(frozen=True)
class LabelingConfig:
    """What an importer needs of a labeling config."""

    fields: dict[str, str] = field(default_factory=dict[str, str])
    """Name of an object tag -> key in the task's data."""
    sides: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Name of a Pairwise control -> names of the left and the right object."""
    scales: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """Name of a Rating or Number control -> ends of its scale."""


def config_path(path: Path) -> Path:
    """Return where the labeling config of an exported file lies."""
    return path.with_name(f"{path.name}.config.xml")


def read_config(path: Path) -> LabelingConfig:
    """Read a labeling config.

    Raises:
        DataError: it is not XML, or declares entities, which only a hostile one does.
    """
    content = read_bytes(path)
    if len(content) > _MAX_CONFIG or b"<!" in content.replace(b"<!--", b""):
        raise DataError(
            f"{path}: a labeling config has no declarations and is below 1 MB; save it anew from Label Studio"
        )
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not a labeling config: {error}; save it anew from Label Studio") from error
    config = LabelingConfig()
    for tag in root.iter():
        name = tag.get("name", "")
        if tag.get("value", "").startswith("$"):
            config.fields[name] = tag.get("value", "")[1:]
        match tag.tag:
            case "Pairwise":
                sides = tag.get("toName", "").split(",")
                if len(sides) != 2:
                    raise DataError(f"{path}: Pairwise {name!r} has toName={tag.get('toName')!r}; expected two names")
                config.sides[name] = (sides[0].strip(), sides[1].strip())
            case "Rating":
                config.scales[name] = (1, float(tag.get("maxRating", "5")))
            case "Number" if tag.get("min") is not None and tag.get("max") is not None:
                config.scales[name] = (float(tag.get("min", "")), float(tag.get("max", "")))
            case _:
                continue
    return config


def is_stars(axis: RatedAxis) -> bool:
    """Say whether a rating fits Label Studio's stars, 1 to a whole number."""
    return axis.low == 1 and axis.high == int(axis.high) and axis.value == int(axis.value)


def written_config(num_answers: int, axes: dict[str, RatedAxis], labels: Sequence[str]) -> str:
    """Return the config of an export: any of its tasks can be shown and read with it."""
    answers = [f"answer{number}" for number in range(1, num_answers + 1)]
    lines = ["<View>", '  <Text name="prompt" value="$prompt"/>']
    lines += [f'  <Text name="{answer}" value="${answer}"/>' for answer in answers]
    if num_answers >= 2:
        lines.append('  <Pairwise name="comparison" toName="answer1,answer2"/>')
    lines.append('  <Choices name="strength" toName="prompt" choice="single">')
    lines += [f'    <Choice value="{value}"/>' for value in STRENGTHS]
    lines += ["  </Choices>", '  <List name="answers" value="$items"/>', '  <Ranker name="rank" toName="answers"/>']
    lines += [
        '  <Choices name="errors" toName="prompt" choice="single">',
        f'    <Choice value="{NO_ERRORS}"/>',
        "  </Choices>",
    ]
    for answer in answers:
        if labels:
            lines.append(f'  <Labels name="{answer} errors" toName="{answer}">')
            lines += [f"    <Label value={quoteattr(label)}/>" for label in labels]
            lines.append("  </Labels>")
        lines += [f'  <TextArea name="{answer} {kind}" toName="{answer}"/>' for kind in ("correction", "critique")]
    for name, axis in axes.items():
        own = f"name={quoteattr(name)} toName={quoteattr('answer1')}"
        tag = (
            f'Rating {own} maxRating="{axis.high:g}"'
            if is_stars(axis)
            else (f'Number {own} min="{axis.low!r}" max="{axis.high!r}"')
        )
        lines.append(f"  <{tag}/>")
    lines += [f'  <TextArea name="{kind}" toName="prompt"/>' for kind in ("demonstration", "rationale")]
    return "\n".join([*lines, "</View>"]) + "\n"


NO_ERRORS = "no errors"
"""Choice that says that the judge looked for errors and found none."""
STRENGTHS = {
    "much": 3,
    "clearly": 2,
    "slightly": 1,
    "negligibly": 0,
    "tie": "tie",
    "both bad": "both_bad",
    "unsure": "unsure",
}
"""Choices that say how much better the winner is, or that there is none -> strength or outcome."""
