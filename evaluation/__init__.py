"""Measures of a model that return numbers, figures of them, and the questions that ask for both.

A measure restores the model's mode. Of several processes, each with its share of the batches in
order, all get the numbers of all batches.
"""


class NotFinite(ValueError):
    """A model that is broken computes numbers that are not finite. The message is one line."""
