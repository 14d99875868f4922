"""What people read: tables for the terminal, the page, and the check that a record still says what its scores say."""
