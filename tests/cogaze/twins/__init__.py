"""Invented data in the exact layout of each benchmark dataset, a few pixels large."""
