"""What people click in: the page, and the protocols of viewers that they already have."""
