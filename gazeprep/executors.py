"""Where jobs run: a pool of processes, this process, or a Ray cluster. The bytes are the same from each.

An executor is a function of what to call for each job, the jobs and the number of workers, 0 for as many as there
are cores; it yields the reports as they come. Another scheduler needs nothing more:

    def dask_tasks(run, jobs, workers):
        for _, report in distributed.as_completed(client.map(run, jobs), with_results=True):
            yield report

    build(config, executor=dask_tasks)
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, Protocol

import cv2

from gazeprep.jobs import BuildError, Job, JobReport, end_early_at
from gazeprep.workers import LOST_WORKER, LostWorkerError, worker_pool

ExecutorName = Literal["local", "inline", "ray"]
Run = Callable[[Job], JobReport]  # can be pickled

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
# glibc gives the memory of every full-size picture back and faults it in anew, a quarter of the time
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
WORKER_ENVIRONMENT = ONE_THREAD | KEPT_MEMORY
RETRIES = 3  # of a job whose Ray worker died
GO_ON = "finished shards stay: run the same command again, with fewer workers if it recurs"


class Executor(Protocol):
    """Runs jobs and yields their reports in any order; raises BuildError where it has to stop."""

    def __call__(self, run: Run, jobs: Sequence[Job], workers: int) -> Iterator[JobReport]:
        """Call `run` with each job, and yield what it returns."""


def inline(run: Run, jobs: Sequence[Job], workers: int) -> Iterator[JobReport]:
    """Run jobs in this process, one after the other."""
    del workers
    return map(run, jobs)


# --- a pool of processes


def local_pool(run: Run, jobs: Sequence[Job], workers: int) -> Iterator[JobReport]:
    """Run jobs in a pool of spawned processes, each with one BLAS and OpenCV thread."""
    workers = min(workers or os.cpu_count() or 1, max(len(jobs), 1))
    stop = multiprocessing.get_context("spawn").RawValue("b", 0)  # no lock, which a killed worker could keep
    try:
        with _environment(WORKER_ENVIRONMENT), worker_pool(workers, end_early_at, stop) as pool:
            yield from _as_finished(pool, ((run, job) for job in jobs), 2 * workers, stop)
    except LostWorkerError:
        script = "a script that calls build() needs its if __name__ == '__main__' line"
        raise BuildError(f"{LOST_WORKER}; {GO_ON} ({script})") from None


def _as_finished(pool: ProcessPoolExecutor, calls: Iterator[Any], at_once: int, stop: Any) -> Iterator[JobReport]:
    """Yield results as they come, with no more than `at_once` calls pickled and waiting.

    On an error or Ctrl-C, running jobs end at their next sample, because stop.value is set, and are waited for.
    """
    running = _submit(pool, calls, at_once)
    try:
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
                running |= _submit(pool, calls, 1)
    finally:
        stop.value = 1
        wait([future for future in running if not future.cancel()])


def _submit(pool: ProcessPoolExecutor, calls: Iterator[Any], count: int) -> set[Future[JobReport]]:
    """Hand calls to the pool with Ctrl-C held back: the workers it starts inherit that and leave it to us."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(*call) for call in islice(calls, count)}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- Ray


def ray_tasks(run: Run, jobs: Sequence[Job], workers: int) -> Iterator[JobReport]:
    """Run jobs as Ray tasks of one core, on the cluster of RAY_ADDRESS or on one of `workers` that is started here.

    A job whose worker died is tried again; the cluster must see the same source and output folders as this process.
    """
    try:
        import ray
        from ray.exceptions import RayTaskError, WorkerCrashedError
    except ModuleNotFoundError:
        raise ValueError("ray is not installed; run pip install 'gazeprep-cogaze[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=None if os.environ.get("RAY_ADDRESS") else workers or None, include_dashboard=False)
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES, runtime_env={"env_vars": WORKER_ENVIRONMENT})(_in_ray)
        cores = workers or int(ray.cluster_resources().get("CPU", 1))
        left = iter(jobs)
        running = [task.remote(run, job) for job in islice(left, 2 * cores)]
        while running:
            finished, running = ray.wait(running)
            yield ray.get(finished[0])
            running += [task.remote(run, job) for job in islice(left, 1)]
    except RayTaskError as error:
        raise error.cause from None
    except WorkerCrashedError:
        raise BuildError(f"{LOST_WORKER}; {GO_ON}") from None
    finally:
        if started:
            ray.shutdown()


def _in_ray(run: Run, job: Job) -> JobReport:
    cv2.setNumThreads(1)
    return run(job)


EXECUTORS: dict[ExecutorName, Executor] = {"local": local_pool, "inline": inline, "ray": ray_tasks}
