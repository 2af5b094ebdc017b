"""What is solved exactly around training: offset, refit, noise, and calibration on it."""
