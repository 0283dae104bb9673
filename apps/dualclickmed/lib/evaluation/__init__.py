"""Measuring: the click protocol, its metrics, other methods to compare with, and reports."""
