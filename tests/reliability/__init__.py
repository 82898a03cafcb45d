"""Rigs that try to break what asyncckpt promises, and count.

`rig.py` says what a rig is, `rigs.py` lists them, `driver.py` runs them, `ledger.py` remembers what was tried, and
`report.py` makes docs/reliability.md from that memory alone. `python -m tests.reliability --help` says how to run them.
"""
