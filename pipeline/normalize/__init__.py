"""Stored pixels to intensities, one module a family of modalities."""
