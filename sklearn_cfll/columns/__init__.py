"""From a table's columns to what a network sees: standardising, bins, normal scores."""
