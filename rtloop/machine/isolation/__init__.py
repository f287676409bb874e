"""Isolation of CPUs without a reboot: a partition, what is moved away from it, and how all of it is undone."""
