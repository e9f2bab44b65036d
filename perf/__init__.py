"""Speed and memory of every objective, as ratios measured in one run."""
