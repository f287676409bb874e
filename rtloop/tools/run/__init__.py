"""rtloop run: compile, run and report one loop."""
