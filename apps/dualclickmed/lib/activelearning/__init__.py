"""Which image to annotate next, and the scores by which it is chosen."""
