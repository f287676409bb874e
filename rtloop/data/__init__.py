"""Memory and exchanges that a step may touch: buffers, pools, rings, latest values, signals."""
