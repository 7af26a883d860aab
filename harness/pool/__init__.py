"""Who does the work: this process, processes of this machine, or a cluster."""

from harness.pool._employ import ALONE, Crew, Parallelism, employ, one_thread
from harness.pool._workers import Died, Pool, WorkerError
