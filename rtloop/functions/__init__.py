"""Loops whose step is a function rather than a method: FunctionLoop for compiled code, PyLoop for Python."""
