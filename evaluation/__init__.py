"""Questions put to a model, as functions that return numbers."""


class NotFinite(ValueError):
    """What a broken model computes: no number. The message is one line."""
