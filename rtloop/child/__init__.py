"""A Python step in a process of its own: the side of the parent, and the program of the child."""
