"""What the words of a trace say: answers, steps, equations, and verified corruptions."""
