"""A real one-machine Kubernetes, built from pinned upstream sources. See README.md."""
