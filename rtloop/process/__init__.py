"""End of the process: signals that end it, hooks at its end, and calls that no signal interrupts."""
