"""rtloop lint: report what does not belong into a step."""
