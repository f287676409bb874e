"""Parts that a ring and a latest value have in common: waiting, sharing, and items lent in place."""
