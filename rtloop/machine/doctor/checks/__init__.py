"""Checks of the doctor, one module a topic."""
