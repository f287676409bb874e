"""Examination of the machine itself."""
