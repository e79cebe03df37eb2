"""The MLflow adapter."""
