"""Who made a cycle late: a trace of the kernel beside a run, and the attribution of each delay."""
