"""Statistics of a run, and the tables, plots, findings and files made of them."""
