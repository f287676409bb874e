"""Find what does not belong in a real-time step: rtloop.lint."""
