"""The stages as a Kubeflow pipeline: compile it, run it on this machine, or submit it to a cluster."""
