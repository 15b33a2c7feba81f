"""Networks with their layer names, one module a modality."""
