"""What a person runs and sees: the command line and its commands."""
