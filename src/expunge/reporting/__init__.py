"""Output for people: tables for the terminal, the HTML page, and the check of a record against its scores."""
