"""One file a revision. A published revision is never edited: add another."""
