"""Tasks: fields become prompts, prompts become sequences, sequences become answers. No HTTP, no tensors."""
