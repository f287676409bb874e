"""rtloop export: a run as a trace or a histogram log for other tools."""
