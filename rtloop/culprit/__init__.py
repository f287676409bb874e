"""Causes of late cycles: a trace of the kernel during a run, and the attribution of each delay."""
