"""What regressor and classifier share: checks, training, the final solve, the fitted state."""
