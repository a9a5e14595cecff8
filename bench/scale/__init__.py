"""Muslin on a large cluster, simulated: `python -m bench.scale` (`make scale`), into docs/scale.md.

estate.py      the cluster as values: nodes, blocks, pods, services; how long each part runs
counted.py     an API server that counts what it is asked and what it sends
populate.py    the cluster put into it
churn.py       what comes and goes in it
server.py      the three as a process of their own, under command
machine.py     a namespace with that process, and real processes of Muslin in it
cost.py        what a process costs: memory, CPU; quantiles
node.py        one real agent: memory, CPU, how fast a change is in its kernel (moments.py)
leader.py      the real controller: memory, CPU, writes for pods and blocks
storm.py       a thousand agents' watches (crowd.py) and an API server that restarts
holding.py     what nodes and blocks weigh, and what a pass over them costs
page.py        from figures to pages: tables.py, which bars are met (bars.py), ten thousand
               nodes (paper.py)
"""
