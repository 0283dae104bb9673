"""The generated sample study, and pictures of masks."""
