"""Settings of quick fits with instruments."""

SMALL = {
    "treatment_hidden_sizes": (8, 2),
    "instrument_hidden_sizes": (16, 8),
    "covariate_hidden_sizes": (16, 4),
    "n_repeats": 1,
    "max_epochs": 8,
    "random_state": 0,
}
