"""Training programs that need another loop than train_wrn.py's, on the same models and data."""
