"""Text generation: the command (`command`), and decoding of padded batches of prompts (`prompting`)."""
