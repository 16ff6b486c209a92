"""The speed of training and evaluation: see `__main__`."""
