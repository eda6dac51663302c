"""What people see: tables, rows, pictures."""
