"""The process: signals that end it, hooks at its end, calls that no signal interrupts, its Python interpreter."""
