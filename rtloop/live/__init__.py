"""Parameters and signals of a running loop, seen and changed from any thread or process."""
