"""Benchmarks: an artifact of ours beside what a user would run instead, each checked before it is timed."""
