"""The answers of a tuned model, their scores, and adversarial attacks."""
