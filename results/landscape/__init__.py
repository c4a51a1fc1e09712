"""What lies around and between trained and pruned networks: the figures of both papers, on the same networks."""
