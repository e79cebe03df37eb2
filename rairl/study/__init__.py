"""Many runs of the pipeline, and tables over them."""
