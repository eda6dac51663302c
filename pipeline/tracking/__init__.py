"""What goes to MLflow, kept on disk until it has arrived."""
