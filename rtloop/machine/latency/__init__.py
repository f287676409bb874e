"""Measurement of the machine's wake-up latency: loops under a load, cyclictest, and the claims that they support."""
