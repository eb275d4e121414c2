"""Training programs whose training step differs from train_wrn.py's; same models and data."""
