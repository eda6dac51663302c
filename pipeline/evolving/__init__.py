"""What decides: candidates in, results out, and no files or processes."""
