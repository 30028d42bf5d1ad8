"""Kinds of task. One more kind is: a config in `harken.config.project`, a template, a script, and a function below.

For each kind there is a function that makes an answer from a form and one that fills a form from an answer, and
`choose` picks the right one. Completions have no names in a form, only their place on the page: an id could tell who
wrote it.
"""

from harken.feedback.web.kinds.choose import BadForm, Fields, fill_form, make_answer

__all__ = ["BadForm", "Fields", "fill_form", "make_answer"]
