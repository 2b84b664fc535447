"""The parts of `benchmarks/origin_study.py`: its pictures, its runs, its measurements and its report."""
