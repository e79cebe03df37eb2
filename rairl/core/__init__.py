"""What everything else stands on: errors, parameters, the one data type, statistics."""
