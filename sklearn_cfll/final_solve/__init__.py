"""After training: the final ridge, the refit, the noise, and intervals calibrated on it."""
