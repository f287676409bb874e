"""Compile a loop's source into a module: rtloop.build and its cache."""
