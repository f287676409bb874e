"""rtloop demo: balance a pole beside a busy Python thread."""
