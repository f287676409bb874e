"""Outcome of a run: its statistics, the reason of a failure, and the warnings for the user."""
