"""Training methods beyond ProActor: one file each, on the engine's hooks."""
