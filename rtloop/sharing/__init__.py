"""Sealed memory that the processes of a machine share, found through ``/proc``."""
