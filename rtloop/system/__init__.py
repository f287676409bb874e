"""The kernel's grants and their causes: privileges, CPUs, control groups, checks and fixes."""
