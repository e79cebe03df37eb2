"""Learning: language-model training, rollouts, replay, loss, credit, the adversarial loop."""
