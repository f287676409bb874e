"""``rtloop scope``: signals and parameters of running loops in the browser."""
