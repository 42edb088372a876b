"""A machine as a reader wants to know it: a few facts in words, from its fingerprint and what could be read of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.report.merging import Device
from benchmarks.report.numbers import enumeration


def facts_of(device: Device) -> list[tuple[str, str]]:
    """Return names and values; what could not be read is left out, and counted in the last one."""
    environment = device.environment
    facts = [*_facts_of_sections(environment.sections), ("Measured", _runs(device))]
    facts = [("Fingerprint", environment.fingerprint), *facts]
    if environment.missing:
        facts.append(("Not readable", ", ".join(sorted(name.replace("_", " ") for name in environment.missing))))
    return facts


def _facts_of_sections(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    cpu, board, system = sections["cpu"], sections["board"], sections["system"]
    yield "Processor", f"{board['model'] or ''} {cpu['model'] or ''} ({cpu['architecture']})".strip()
    quota = f", limited to {cpu['quota_cores']:g}" if cpu.get("quota_cores") else ""
    yield "Cores", f"{cpu['num_usable_cores']} of {cpu['num_cores']}{quota}"
    clocks = [f"{cpu[name]}" for name in ("governor",) if cpu.get(name)]
    clocks += [f"up to {cpu[name]:,.0f} MHz" for name in ("max_mhz",) if cpu.get(name)]
    if clocks:
        yield "Clock", ", ".join(clocks)
    total = sections["memory"]["total_bytes"]
    if isinstance(total, int):
        yield "Memory", f"{total / 2**30:.1f} GiB"
    for gpu in sections["gpu"]["gpus"] or ():
        yield "GPU", ", ".join(str(value) for key, value in gpu.items() if key in ("name", "driver") and value)
    inside = [str(board[kind]) for kind in ("virtualization", "container") if board[kind] not in (None, "none")]
    if inside:
        yield "Runs in", f"{enumeration(inside)}: others may share it"
    yield "System", ", ".join(str(value) for value in system.values() if isinstance(value, str))
    versions = {name: version for name, version in sections["versions"].items() if version}
    yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    threads = {name: value for name, value in sections["threads"].items() if value}
    if threads:
        yield "Threads", ", ".join(f"{name}={value}" for name, value in threads.items())


def _runs(device: Device) -> str:
    return "; ".join(
        f"{result.command} {result.created.replace('T', ' ').removesuffix('Z')} UTC" for result in device.results
    )
