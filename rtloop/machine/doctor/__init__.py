"""The doctor: examine the machine and this session for what harms a real-time loop."""
