"""Judgments -> training data: which ratings count, how far judges agree, splits and pairs."""
