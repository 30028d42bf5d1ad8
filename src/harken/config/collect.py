"""Settings of the first stage of a recipe: which judgments, in which format."""

from typing import Literal

from pydantic import Field

from harken.config.base import Config

Format = Literal[
    "harken",
    "hh-rlhf",
    "trl",
    "oasst",
    "label-studio",
    "argilla",
    "arena",
    "helpsteer",
    "llmfao",
    "prism",
    "instructions",
    "csv",
    "lines",
]
"""Formats of feedback and training data that Harken reads."""


class CollectConfig(Config):
    """Where the judgments come from: all that `harken collect import` takes."""

    format: Literal["auto", "ratings"] | Format = "ratings"
    """`ratings`: files of texts and people's ratings; `auto` finds out; else a format of
    [formats.md](formats.md), such as `harken` for a folder made by `harken collect export`."""
    path: str = "reviews:movie"
    """A file or folder; `hub:OWNER/NAME`; or `reviews:movie`, `reviews:amazon`, `reviews:nyt`, `reviews:tweets`: real
    ratings that Harken fetches by itself."""
    columns: dict[str, str] = Field(default={})
    """Harken's name of a column to the file's, as `prompt = "question"` (`--map`)."""
    scales: dict[str, tuple[float, float]] = Field(default={})
    """Rating axis to the ends of its scale, for formats that do not say (`--scale`)."""
    labeling_config: str = ""
    """Label Studio: the labeling config, where it does not lie beside the file (`--labeling-config`)."""
    buckets: tuple[str, ...] = ()
    """Label Studio: buckets from best to worst (`--buckets`)."""
