"""A stage as a task of a Kubeflow pipeline."""
