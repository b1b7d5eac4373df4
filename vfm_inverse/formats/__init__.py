"""What files of users say of their own content: labels, units, places, columns. No torch is
needed."""
