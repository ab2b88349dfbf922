"""What is asked of an engine with Undercroft behind it; one file a question."""
