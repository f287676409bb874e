"""Nothing is for others to cimport."""
