"""What the benches say of the machine, and what processes have used of it: processor time and memory, from /proc."""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def described():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) / 1024**2
    name = cpu[1] if cpu else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, Linux {platform.release()}"


def commit():
    """Of the repository this file is in, and whether something was changed since; empty where git can't tell."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def load():
    """The load average of the last minute: what else the machine was doing, before anything is measured."""
    return Path("/proc/loadavg").read_text().split()[0]


def _stat(pid):
    """The fields of /proc/PID/stat that follow the program's name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def process_seconds(pid):
    """Processor time of one process, its ended threads included (proc(5), utime and stime)."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICK


def family_seconds(parent):
    """Processor time of a process, of the children it has, and of those that have ended."""
    ticks = sum(int(field) for field in _stat(parent)[11:15])
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = _stat(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def cluster_seconds(postmaster):
    """Processor time of a PostgreSQL server: that of the postmaster and its sessions."""
    return family_seconds(postmaster)


def busy_seconds():
    """Processor time that the whole machine has given to anyone (proc(5), /proc/stat without idle and iowait)."""
    total = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    user, nice, system, _, _, irq, softirq, *_ = (int(field) for field in total)
    return (user + nice + system + irq + softirq) / TICK


def forget_peak(pid):
    """From here on `peak` tells of what comes (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid):
    """The most memory it had resident, in MiB; 0 once it has ended."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        found = None
    return int(found[1]) / 1024 if found else 0.0


def watched(process):
    """Waits for a process; gives its most memory in MiB and its processor time. Ends the bench when it failed.

    Looks a hundred times a second: what wait4 tells of memory also counts that of the process it was forked from.
    """
    most = 0.0
    while True:
        most = max(most, peak(process.pid))
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{process.args} ended with {process.returncode}")
    return most, used.ru_utime + used.ru_stime


def waited(process):
    """Waits for a process; gives its processor time, that of its children included. Ends the bench when it failed."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{process.args} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


class Meter:
    """Processor time of servers while something is done.

    `servers` gives for each name a function of its seconds so far.
    """

    def __init__(self, **servers):
        self.servers = servers

    def __enter__(self):
        self.before = {name: seconds() for name, seconds in self.servers.items()}
        self.busy, self.began = busy_seconds(), time.monotonic()
        return self

    def __exit__(self, *_):
        self.wall = time.monotonic() - self.began
        # Sessions that end give their times to their parent when they are gone.
        time.sleep(0.15)
        self.seconds = {name: seconds() - self.before[name] for name, seconds in self.servers.items()}
        self.busy = busy_seconds() - self.busy

    def others(self, client_seconds=0.0):
        """What processes that are not measured used meanwhile, as a share of one core."""
        return max(0.0, self.busy - sum(self.seconds.values()) - client_seconds) / (self.wall + 0.15)
