"""Services of a user's session."""
