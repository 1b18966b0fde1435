"""Agents played through whole dialogues: scored, taken apart by tool and domain, compared, and saved."""
