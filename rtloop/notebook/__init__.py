"""Jupyter magics: %%rtloop and %rtloop, for the classes of a cell and the step of a running loop."""
