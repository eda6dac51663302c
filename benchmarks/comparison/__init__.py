"""Whole real searches at equal CPU seconds: their arms, what is kept of them, and the report."""
