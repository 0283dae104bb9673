"""Images, labels and prompts, in memory and in files. Knows nothing of the project but its errors."""
