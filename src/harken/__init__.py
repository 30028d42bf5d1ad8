"""Harken turns what people say about a language model's answers into a better model."""
