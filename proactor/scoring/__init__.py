"""How well proposed actions fit what a dialogue calls for and how well they are timed, as metrics with
intervals by dialogue.
"""
