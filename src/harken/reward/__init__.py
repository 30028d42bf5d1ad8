"""Pairs to reward model, and everything else that can score a completion."""
