"""That an exported model says what the trained network says, and what is said of it."""
