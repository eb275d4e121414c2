"""Training programs that need another step than train_wrn.py's, on the same models and data."""
