"""Speed and memory of kpnb, each figure beside its bound; ``python -m benchmarks`` runs
everything.
"""
