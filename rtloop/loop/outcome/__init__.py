"""What has become of a run: its statistics, why it failed, and what the user is warned of."""
