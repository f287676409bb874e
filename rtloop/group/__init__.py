"""Several loops run as one: one origin, one end, a watchdog, chains of data."""
