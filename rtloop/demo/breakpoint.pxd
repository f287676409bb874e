# Nobody has to know how it looks inside.
