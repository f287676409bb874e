"""rtloop lint: report what does not belong in a step."""
