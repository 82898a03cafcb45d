"""The benchmark: what a save costs the loop, how soon it is durable, how fast it loads; ours, peers, and the floors.

`python -m benchmarks.run` measures everything and writes `benchmarks/results/`. Each measurement is a fresh process
(`worker.py`) that runs one workload (`workloads.py`) with one system (`systems/`), and the systems take turns, round by
round, so that all of them meet the same machine. `floors.py` measures what the machine itself can do, in the same run;
`goals.py` lists what is to be reached as ratios to it; `report.py` and `plots.py` say what came out.
"""
