"""rtloop top: watch the loops that run."""
