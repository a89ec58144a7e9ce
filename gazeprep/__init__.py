"""From eye-tracking recordings, radiographs and reports to gaze maps and WebDataset shards."""
