"""Data of accelerated MRI."""
