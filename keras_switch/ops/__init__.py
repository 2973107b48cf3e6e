"""Functions on tensors: the only place that names a backend."""
