"""After training: the final ridge, the refit, the noise model, and calibrated intervals."""
