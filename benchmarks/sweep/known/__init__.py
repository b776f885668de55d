"""What single classes need, by field; `sweep.model_settings` joins these tables."""
