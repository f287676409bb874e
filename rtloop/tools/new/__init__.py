"""rtloop new: make a starting project from a template."""
