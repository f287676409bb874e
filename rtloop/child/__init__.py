"""A Python step in a process of its own: what the parent sees of it, and what runs in the child."""
