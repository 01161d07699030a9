"""Text from prompts: the command, and prompts as padded batches of tokens."""
