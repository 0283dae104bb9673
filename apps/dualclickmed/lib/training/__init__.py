"""Training: sources, generated volumes, samples, recipes, and the loop."""
