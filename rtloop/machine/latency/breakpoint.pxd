# Empty on purpose: its layout is private.
