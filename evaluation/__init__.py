"""Measures of a model that return numbers, figures of them, and the questions that ask for both."""


class NotFinite(ValueError):
    """A model that is broken computes numbers that are not finite. The message is one line."""
