"""The rungs that need more than a comparison of two arrays, a file for each."""
