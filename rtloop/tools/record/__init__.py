"""``rtloop record``: signals of a running loop, or of loops on several hosts, in a file."""
