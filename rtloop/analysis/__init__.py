"""Schedulability: response times of tasks, computed before anything runs."""
