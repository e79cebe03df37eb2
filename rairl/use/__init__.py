"""The trained reward in use."""
