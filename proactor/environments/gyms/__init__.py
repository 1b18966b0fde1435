"""Environments that run here, offline: our own code on UserRL's data, and a task of our own."""
