"""The block of shared memory that a loop writes and others read."""
