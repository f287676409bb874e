"""Declarations of rtloop's C headers for Cython: one .pxd for each header or family of headers, externs only."""
