"""Reports: HTML pages, tables, plots."""
