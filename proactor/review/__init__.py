"""Windows looked over by people."""
