"""From a fine-tuned network to a file that can be deployed, and the proof that it is the same."""
