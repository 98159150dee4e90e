"""Floor 7: the trained model in a user's hands: reports and, later, search and export."""
