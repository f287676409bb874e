"""Samples of running loops: read, kept, decimated for drawing, and searched for triggers."""
