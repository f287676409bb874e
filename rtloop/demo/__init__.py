"""The compiled controllers that ``rtloop demo`` runs and the tests reuse."""
