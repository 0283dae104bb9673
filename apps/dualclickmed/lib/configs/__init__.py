"""The server's settings, and the words of its requests and answers."""
