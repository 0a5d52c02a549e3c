"""From records to a page: medians, spread, ratios."""

from statistics import median

# Above this the client, not the server, may be what is measured.
CLIENT_BUSY = 0.95


def line(record):
    return (
        f"round {record['round']:2} {record['server']:9} {record['size']:>6} "
        f"c={record['connections']:<3} {record['client']:13} {record['gb_per_s']:7.3f} GB/s "
        f"{record['requests_per_s']:9.0f} req/s p99 {record['p99_ms']:8.3f} ms "
        f"client {record['client_cpu_share']:4.0%} errors {record['errors']}"
    )


def page(facts, records):
    servers = unique(record["server"] for record in records)
    rounds = 1 + max(record["round"] for record in records)
    parts = [
        f"# {' and '.join(servers)}, side by side\n",
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"{facts['distribution']}, kernel {facts['kernel']}. Commit {facts['commit']}, "
        f"profile {facts['profile']}; {facts['nginx']}; {facts['wrk']}.\n",
        f"Server on one core, client on another; {rounds} rounds, the servers in turn within "
        f"each. Command: `python3 bench/compare {' '.join(facts['arguments'])}`".rstrip() + "\n",
        table(records, servers),
        "Medians over the rounds, in brackets the lowest and highest. CPU s/GB is the server's, "
        "from the scheduler. `!`: the client was busy for more than "
        f"{CLIENT_BUSY:.0%} of the time and may be what was measured.\n",
    ]
    if len(servers) == 2:
        parts.insert(4, ratios(records, servers))
    if counters := facts["counters"].get("entrepot"):
        parts.append("Counted by entrepot while it was measured:\n")
        parts.append("".join(f"- `{name}` {value:.0f}\n" for name, value in sorted(counters.items())))
    return "\n".join(parts)


def table(records, servers):
    lines = [
        "| size | c | client | server | GB/s | req/s | p50 ms | p99 ms | CPU s/GB | client busy | errors |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for work in works(records):
        for server in servers:
            runs = [record for record in records if key(record) == (*work, server)]
            busy = median(run["client_cpu_share"] for run in runs)
            mark = " !" if busy > CLIENT_BUSY else ""
            cpu = [run["server_cpu_s"] / (run["bytes"] / 1e9) for run in runs if run["bytes"]]
            cells = [
                *map(str, work),
                server,
                spread([run["gb_per_s"] for run in runs], "{:.3g}"),
                f"{median(run['requests_per_s'] for run in runs):.0f}",
                f"{median(run['p50_ms'] for run in runs):.3f}",
                f"{median(run['p99_ms'] for run in runs):.3f}",
                f"{median(cpu):.3f}" if cpu else "-",
                f"{busy:.0%}{mark}",
                str(sum(run["errors"] for run in runs)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ratios(records, servers):
    """Within each round, so that what disturbs the machine disturbs both."""
    base, other = servers if servers[0] == "nginx" else reversed(servers)
    lines = [
        f"| size | c | client | {other} / {base}, GB/s | CPU s/GB |",
        "|---|---|---|---|---|",
    ]
    for work in works(records):
        speed, cpu = [], []
        for turn in unique(record["round"] for record in records):
            pair = {
                record["server"]: record
                for record in records
                if record["round"] == turn and key(record)[:3] == work
            }
            first, second = pair[other], pair[base]
            if first["bytes"] and second["bytes"]:
                speed.append(first["gb_per_s"] / second["gb_per_s"])
                per_gb = lambda run: run["server_cpu_s"] / run["bytes"]
                cpu.append(per_gb(first) / per_gb(second))
        cells = [*map(str, work), spread(speed, "{:.2f}"), spread(cpu, "{:.2f}")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def key(record):
    return record["size"], record["connections"], record["client"], record["server"]


def works(records):
    return unique(key(record)[:3] for record in records)


def unique(values):
    return list(dict.fromkeys(values))


def spread(values, form):
    if not values:
        return "-"
    middle, low, high = (form.format(f(values)) for f in (median, min, max))
    return f"{middle} ({low}–{high})"
