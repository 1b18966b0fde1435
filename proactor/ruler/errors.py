"""What can be wrong with how a judge is set up. What goes wrong while judging is counted, never raised."""


class RulerError(ValueError):
    """A rubric, judge or request that cannot work; one line."""
