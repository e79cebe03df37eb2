"""Speed, measured beside what users would pick instead: `make bench`. No test times anything."""
