"""Functions of samples: ranks, scores, distances. They know neither maps nor problems."""
