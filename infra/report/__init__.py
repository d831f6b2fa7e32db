"""The periodic equity report: one HTML file, each number with the SQL that gives it."""
