"""What is raised for a reward that cannot be used."""


class RewardError(ValueError):
    """A reward that is unknown, raised, or gave something other than one finite number a completion."""
