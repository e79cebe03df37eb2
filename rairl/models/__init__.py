"""The two things that learn: policy and reward."""
