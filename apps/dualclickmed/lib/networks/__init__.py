"""The networks of the two experts and their presets."""
