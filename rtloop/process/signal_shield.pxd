"""Nothing of the keeper is for cimport."""
