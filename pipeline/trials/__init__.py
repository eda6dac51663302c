"""Where training happens, and what of it is kept."""
