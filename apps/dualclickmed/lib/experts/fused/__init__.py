"""The strategy ``fused``: both experts' answers refined by the image's edges, intensities and the clicks."""
