"""An estate on one machine: network namespaces with the real agents and real pods in them.

topology  reading  files     a TOML file → one frozen value, or every fault in it
build                        the value → namespaces, bridges, veths, routes
process  state               processes that are never lost, and what is remembered
boot  seed  cluster  pods    store, agents, pods; up and down from any state
probe  check  report         packets → findings → a matrix
paths  bench  tables         what the kernel would do; how fast it is
picture  demo                the whole of it, to look at
"""
