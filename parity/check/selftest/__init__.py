"""Whether the check itself is right: planted faults, and how often healthy models fail."""
