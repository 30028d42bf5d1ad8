"""Completions -> what can be said about a model: text metrics, statistics with uncertainty."""
