"""Scripts that made the numbers in this folder; each prints the command that makes it again."""
