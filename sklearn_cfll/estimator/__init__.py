"""Code shared by regressor and classifier: checks, training, final solve and fitted state."""
