"""Common parts of Ring and Latest: waiting, sharing, and views of items in place."""
