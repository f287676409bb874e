"""Examination of the machine: the doctor's checks and the measurement of latencies."""
