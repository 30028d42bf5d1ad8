"""Completions -> judgments: the store of what judges said, and formats in and out. No torch."""
