"""Exact fits before and after training: offset, final ridge, refit, noise model, calibration."""
