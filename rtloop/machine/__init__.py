"""The machine itself: what the doctor examines."""
