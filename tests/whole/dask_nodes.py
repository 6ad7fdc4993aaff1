"""A scheduler of Dask and two workers of one thread each, on this machine: ``dask_nodes.py``.

Says the address and the workers' processes, and ends with its standard input.
"""

import sys

from distributed import LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
    print(cluster.scheduler_address, *(one.pid for one in cluster.workers.values()), flush=True)
    sys.stdin.read()
