# Nothing for cimport.
