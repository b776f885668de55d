"""What single classes need, by field; `sweep.fixes` joins these tables."""
