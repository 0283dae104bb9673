"""Images and labels: files, geometry, intensities. Knows nothing of the project but its errors."""
