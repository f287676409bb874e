"""What Linux grants: memory, threads, CPUs, privileges."""
