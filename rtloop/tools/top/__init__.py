"""rtloop top: watch running loops."""
