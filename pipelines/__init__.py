"""The stages as a Kubeflow pipeline: compile it, or run it on this machine."""
