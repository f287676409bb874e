"""rtloop latency: measure the wake-up latency of this machine."""
