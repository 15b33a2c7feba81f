"""Experiments of section 4.1, one module a modality."""
