"""Learn process-level reasoning rewards from expert demonstrations (R-AIRL)."""

__version__ = "0.1.0"
