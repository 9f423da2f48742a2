"""The parts of bench_gpu.py, one module per question."""
