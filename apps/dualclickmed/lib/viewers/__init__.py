"""The page in the browser, and the protocols of existing viewers."""
