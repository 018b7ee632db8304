"""Real models, with data to calibrate and to judge with, for scripts/bench-quantization."""
