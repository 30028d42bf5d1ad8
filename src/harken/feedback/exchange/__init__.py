"""Feedback formats in: ratings by people, and folders that Harken exported."""

from harken.feedback.exchange.harken_folder import read_harken
from harken.feedback.exchange.ratings import read_ratings

__all__ = ["read_harken", "read_ratings"]
