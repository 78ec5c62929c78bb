"""What the benches say of the machine, and the processor time that processes have used."""

import argparse
import datetime
import os
import platform
import re
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def described():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) / 1024**2
    name = cpu[1] if cpu else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, Linux {platform.release()}"


def _stat(pid):
    """The fields of /proc/PID/stat that follow the program's name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def process_seconds(pid):
    """Processor time of one process, its ended threads included (proc(5), utime and stime)."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICK


def cluster_seconds(postmaster):
    """Processor time of a PostgreSQL server: the postmaster, the processes it has, and those that have ended."""
    ticks = sum(int(field) for field in _stat(postmaster)[11:15])
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = _stat(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == postmaster:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def busy_seconds():
    """Processor time that the whole machine has given to anyone (proc(5), /proc/stat without idle and iowait)."""
    total = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    user, nice, system, _, _, irq, softirq, *_ = (int(field) for field in total)
    return (user + nice + system + irq + softirq) / TICK


def main():
    """The head of the results."""
    given = argparse.ArgumentParser()
    given.add_argument("--command", required=True)
    given.add_argument("--busy", required=True)
    given.add_argument("versions", nargs="+")
    given = given.parse_args()
    print(f"- date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC")
    print(f"- command: `{given.command}`")
    print(f"- machine: {described()}; load average before the run {given.busy}")
    print(f"- versions: {'; '.join(given.versions)}")


if __name__ == "__main__":
    main()
