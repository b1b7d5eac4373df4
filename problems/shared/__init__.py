"""What several problems share: priors, exact posteriors, boxes, pictures."""
