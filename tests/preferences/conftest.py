"""Rated completions made by hand, and the real ratings as an exported folder."""

from pathlib import Path

import pytest

from harken.assets import fetch
from harken.feedback.exchange import read_ratings
from harken.feedback.store import FeedbackStore


@pytest.fixture(scope="session")
def movie_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real movie ratings, imported into a store and exported; read only."""
    folder = tmp_path_factory.mktemp("movie")
    imported = read_ratings(fetch("reviews") / "movieReviewSnippets_GroundTruth.txt")
    with FeedbackStore.open(f"sqlite:///{folder / 'f.db'}") as store:
        store.add(imported.prompts, imported.completions, imported.judgments, source=imported.source)
        store.export(folder / "export")
    return folder / "export"
