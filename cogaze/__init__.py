"""Gaze-supervised pretraining of chest X-ray models on the shards that gazeprep writes."""
