"""Loops in virtual time."""
