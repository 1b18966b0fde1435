"""Worlds that an agent acts in over many turns, with a user in them."""
