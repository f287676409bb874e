"""Find what does not belong into a real-time step: rtloop.lint."""
