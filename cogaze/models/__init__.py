"""Towers, Perceiver, heads, and the models made of them."""
