"""Which image to annotate next, and the scores that say so."""
