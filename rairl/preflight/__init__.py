"""Checks before a run: the user's data, the parameters, the machine."""
