"""Claims of studied systems against the simulator (`whatif reproduce`).

claims.py reads rows, registry.py finds the adapter of a system (one package each: placement_semantics, zero, paro,
...), the adapter answers with simulated numbers, verdicts.py judges them, document.py gathers; report.py and page.py
show. A row that no adapter can read is `not mapped` and says what is missing.
"""
