"""``rtloop isolate``: run a program on CPUs that are isolated for as long as it runs."""
