"""How fast kmsd signs, on this machine, in real processes: `make bench`.

    figures    rows, ratios and their targets; what one round says (pure)
    measures   each measurement, a small function
    sweeps     the two long ones: many profiles, and latency against offered load
    stage      what is measured: signers, an echo, secsipidx, made and ended here
    crew       the processes that make the load, as the bench sees them
    worker     the same from inside; `raw`, `calls`, `others` are the kinds of load
    choices    the JSON and protobuf of the hot path beside what else there is
    proc       CPU time, memory and connections of a process, from /proc
    report     the table, the JSON and the picture

Ratios come from rounds that alternate, so that a neighbour's noise meets both sides of each.
"""
