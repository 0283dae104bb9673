"""How fast, how large and how exact the networks are on this machine: `python main.py bench`."""
