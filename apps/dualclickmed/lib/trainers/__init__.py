"""MONAI Label's Train button: the two experts, retrained on the final labels of the studies."""
