"""How good are the policy and the reward: pass@k, reranking, localisation, audits, and the report that shows them."""
