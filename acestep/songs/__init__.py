"""Songs: requests, their fields, checks and lists."""
