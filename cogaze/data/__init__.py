"""Shards -> batches: epoch plan, random-access dataset, views that move image and gaze together, collation."""
