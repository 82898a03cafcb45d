"""The benchmark: what a save costs the loop, how soon it is durable, how fast it loads; here and in other libraries.

`python -m benchmarks.run` measures everything and writes `benchmarks/results/`. Each measurement is a fresh process
(`worker.py`) that runs one workload (`workloads.py`) with one system (`systems/`), and the systems take turns, round by
round, so that the machine is the same for all of them. `floors.py` measures what the machine itself can do, in the same
run; `goals.py` lists the goals as ratios to that; `report.py` and `plots.py` present the results.
"""
