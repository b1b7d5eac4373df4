"""Monte Carlo in the coordinates of a map: weights, tempering, and what makes draws exact."""
