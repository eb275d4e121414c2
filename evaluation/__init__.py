"""Measures of a model that return numbers, figures of these numbers, and the questions of --eval.

A measure restores the model's mode (train or eval). With several processes each passes its share
of the batches, in order of rank, and gets the numbers of all batches.
"""


class NotFinite(ValueError):
    """A broken model's logits, scores or images are not finite. The message is one line."""
