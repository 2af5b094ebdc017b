"""Transformations of a table's columns inside a network: standardising, bins, normal scores."""
