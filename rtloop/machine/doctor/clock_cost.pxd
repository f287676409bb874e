"""Nothing of the clock is for cimport."""
