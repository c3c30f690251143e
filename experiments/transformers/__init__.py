"""Transformers as tasks, their rivals, and what they reach."""
