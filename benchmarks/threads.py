"""How idle OpenMP threads wait: spinning (the default), briefly or asleep; alone and beside others.

    python benchmarks/threads.py [--quick] [--threads 2] [--rows 64]

Each figure is a product of rows x 576 by 576 x 1536 in a loop, as a small language model decodes,
in a fresh process, since the policy is read when torch is loaded. `beside` runs as many busy
processes as there are threads. The command line sets GOMP_SPINCOUNT=10000 (`briefly`); the ratios
say what it and sleeping at once (OMP_WAIT_POLICY=PASSIVE) cost alone and gain beside others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

POLICIES: dict[str, dict[str, str]] = {
    "spinning": {},
    "briefly": {"GOMP_SPINCOUNT": "10000"},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
}
WORK = """
import sys, time, torch
threads, rows, count, repeats = map(int, sys.argv[1:])
torch.set_num_threads(threads)
a, b = torch.randn(rows, 576), torch.randn(576, 1536)
for _ in range(20):
    a @ b
for _ in range(repeats):
    started = time.perf_counter()
    for _ in range(count):
        torch.relu(a @ b)
    print((time.perf_counter() - started) / count)
"""
BUSY = "while True: pass"


def seconds(policy: dict[str, str], threads: int, rows: int, count: int, repeats: int) -> float:
    """Median seconds of a product in a fresh process."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in names} | policy
    told = subprocess.run(
        [sys.executable, "-c", WORK, *map(str, (threads, rows, count, repeats))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return statistics.median(map(float, told.stdout.split()))


def measured(
    rounds: int, threads: int, rows: int, count: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds under each policy, in turn, so that a change of the machine's load meets both."""
    found: dict[str, list[float]] = {name: [] for name in POLICIES}
    for _ in range(rounds):
        for name, policy in POLICIES.items():
            found[name].append(seconds(policy, threads, rows, count, repeats))
    return found


def main() -> None:
    """Prints a table and four `ratio` lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64)
    given = parser.parse_args()
    rounds, repeats, count = (2, 3, 100) if given.quick else (5, 5, 500)
    for where, others in (("alone", 0), ("beside", given.threads)):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
        try:
            found = measured(rounds, given.threads, given.rows, count, repeats)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        for name, times in found.items():
            print(
                f"{where:8}{name:10}{1e3 * statistics.median(times):8.3f} ms "
                f"({1e3 * min(times):.3f} to {1e3 * max(times):.3f})"
            )
        for name in list(POLICIES)[1:]:
            ratios = [a / b for a, b in zip(found["spinning"], found[name], strict=True)]
            print(
                f"ratio {where} spinning/{name} {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
