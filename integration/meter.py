# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark reads from the machine: CPU time, the kernel's TCP counters, system calls."""

import os
import re
import subprocess

TICKS = os.sysconf("SC_CLK_TCK")
# A checksum that did not fit, and signs that a segment overtook another.
INTEGRITY = ("InCsumErrors", "TCPOFOQueue", "TCPSACKReorder", "TCPTSReorder", "TCPRenoReorder", "RetransSegs")


def busy():
    """Seconds of CPU time that the machine has spent on anything but idling and waiting."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq = (int(word) for word in file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def foreign():
    """Seconds of CPU time of all processes that this one has not started, the kernel's own threads apart.

    A process that ends hands its time to the one that waits for it: the sum over all that live forgets nothing.
    """
    parents, times = {}, {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(pid)] = int(fields[1])
        times[int(pid)] = sum(int(field) for field in fields[11:15])
    ours = {os.getpid()}
    for pid in sorted(parents):
        if parents[pid] in ours:
            ours.add(pid)
    return sum(time for pid, time in times.items() if pid not in ours and pid != 2 and parents[pid] != 2) / TICKS


def cpu_time(pid):
    """Seconds that the threads of a process have run, from the scheduler, to the nanosecond."""
    total = 0
    for thread in os.listdir("/proc/%d/task" % pid):
        try:
            with open("/proc/%d/task/%s/schedstat" % (pid, thread)) as file:
                total += int(file.read().split()[0])
        except OSError:
            continue
    return total / 1e9


def resident(pid):
    """Octets of memory that a process has in use."""
    with open("/proc/%d/statm" % pid) as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kernel_memory():
    """Octets of memory that the kernel holds for itself, page cache apart."""
    with open("/proc/meminfo") as file:
        lines = dict(re.findall(r"^(\w+):\s+(\d+) kB", file.read(), re.MULTILINE))
    return 1024 * sum(int(lines[name]) for name in ("Slab", "VmallocUsed", "Percpu", "PageTables"))


def tcp_counters(lab, hosts):
    """The sum over hosts of the counters that INTEGRITY names."""
    total = dict.fromkeys(INTEGRITY, 0)
    for host in hosts:
        for name in ("snmp", "netstat"):
            lines = lab.run(host, "cat", "/proc/net/" + name).stdout.splitlines()
            for names, values in zip(lines[::2], lines[1::2]):
                for key, value in zip(names.split()[1:], values.split()[1:]):
                    if key in total and names.startswith("Tcp"):
                        total[key] += int(value)
    return total


def queued(lab):
    """Packets that the gateway's queues have taken, and those that they have dropped because somebody was too slow."""
    lines = lab.run("g", "cat", "/proc/net/netfilter/nfnetlink_queue", check=False).stdout.splitlines()
    rows = [[int(word) for word in line.split()] for line in lines]
    return sum(row[7] for row in rows), sum(row[5] + row[6] for row in rows)


class Sample:
    """What the machine spends while a `with` block runs: `wall` and `cpu` in seconds, without what others spend."""

    def __enter__(self):
        self.others = foreign()
        self.start = busy()
        self.began = os.times().elapsed
        return self

    def __exit__(self, *_):
        self.wall = os.times().elapsed - self.began
        self.total = busy() - self.start
        self.others = foreign() - self.others
        self.cpu = max(0.0, self.total - self.others)
        return False


def system_calls(pid, seconds):
    """How many system calls a process makes in so many seconds, counted by perf; None where perf cannot."""
    try:
        done = subprocess.run(["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", str(pid), "--",
                               "sleep", str(seconds)], capture_output=True, text=True)
        return int(done.stderr.split(",")[0])
    except (OSError, ValueError):
        return None


def machine():
    """What a reader of the figures has to know of this machine."""
    with open("/proc/cpuinfo") as file:
        model = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / 2**20
    return {"processor": model.group(1) if model else os.uname().machine, "cores": os.cpu_count(),
            "memory": "%.0f GiB" % memory, "kernel": os.uname().release}
