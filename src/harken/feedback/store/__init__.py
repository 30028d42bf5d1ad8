"""The feedback store: prompts, completions and append-only judgments in one SQLite file."""

from harken.feedback.store.status import ImportSummary, StoreStatus
from harken.feedback.store.store import AddedCounts, FeedbackStore

__all__ = ["AddedCounts", "FeedbackStore", "ImportSummary", "StoreStatus"]
