"""The report: claims, tables, plots and pages made from figures."""
