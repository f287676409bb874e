"""Empty: other modules cimport nothing from this one."""
