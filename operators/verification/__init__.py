"""What shows that an operator does what it says: adjoint, gradient, Taylor and noise tests."""
