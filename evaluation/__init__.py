"""Questions put to a model, as functions that return numbers."""
