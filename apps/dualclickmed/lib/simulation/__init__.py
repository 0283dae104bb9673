"""Simulated clicks, and the rounds of clicks in a training step."""
