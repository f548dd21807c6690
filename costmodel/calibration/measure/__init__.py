"""The hardware at hand, measured: tables of kernels, copies, storage and collectives in one folder.

`run.measure` goes over the families (`plan.families`), each point timed by `timing.sample` and its row written at once
by `session.Session`, so that an interrupted run goes on where it stopped. `read` takes rows from outputs of other
tools. torch is imported here alone (and in the pieces and real ranks), and only when a family needs it.
"""
