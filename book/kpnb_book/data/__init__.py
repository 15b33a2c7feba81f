"""Input data sets, one module a modality."""
