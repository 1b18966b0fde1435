"""One script a claim. Each checks that both sides compute the same, then times them alternately, and ends
with one line of JSON.
"""
