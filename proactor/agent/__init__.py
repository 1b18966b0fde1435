"""A trained agent at work."""
