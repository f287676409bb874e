"""One periodic loop: its settings, its thread, its statistics."""
