"""Revisions of a running loop's step: examined, checked and swapped in."""
