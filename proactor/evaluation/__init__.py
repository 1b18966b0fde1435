"""Agents played through whole dialogues: how they did, by tool and domain, paired with others, and on disk."""
