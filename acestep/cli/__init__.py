"""Commands: what each program and each ``python -m acestep`` command does."""
