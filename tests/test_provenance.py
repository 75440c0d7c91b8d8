"""What a machine is said to have: its processor's units, and the processors that a process may use."""

import os

import pytest

from probjepa import provenance


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n", "AMD EPYC", ["avx2"]),
        (
            "model name : Xeon\nflags : amx_bf16 avx512_bf16 avx512f avx2 amx_tile\n",
            "Xeon",
            ["avx2", "avx512f", "avx512_bf16", "amx_bf16"],
        ),
        ("Features : fp asimd bf16\n", None, []),
        (None, None, []),
    ],
)
def test_the_processor_by_its_name_and_units(tmp_path, monkeypatch, text, model, flags):
    monkeypatch.setattr(provenance, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        provenance.CPUINFO.write_text(text)
    assert provenance.cpu_flags() == flags
    assert provenance.bf16_units() == flags[2:]
    assert provenance.computes_bf16("cpu") == bool(flags[2:]) and not provenance.computes_bf16("mps")
    assert provenance.cpu_model() == model or (model is None and provenance.cpu_model())
    assert (f" ({', '.join(flags)}), " in provenance.hardware()) == bool(flags)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_the_processors_of_a_container(tmp_path, monkeypatch, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(provenance, "CGROUP", tmp_path)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert provenance.usable_cpus() == cpus


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8 << 30),
        ({"memory.max": "max\n", "memory.current": "5\n"}, 8 << 30),
        ({"memory.max": f"{2 << 30}\n", "memory.current": f"{1 << 30}\n"}, 1 << 30),
        ({"memory.max": f"{1 << 30}\n", "memory.current": f"{2 << 30}\n"}, 0),
        ({"memory.max": f"{1 << 50}\n", "memory.current": "0\n"}, 8 << 30),
        (
            {
                "memory/memory.limit_in_bytes": f"{3 << 30}\n",
                "memory/memory.usage_in_bytes": f"{1 << 30}\n",
            },
            2 << 30,
        ),
    ],
)
def test_the_memory_of_a_container(tmp_path, monkeypatch, files, free):
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {(8 << 30) // 1024} kB\n")
    monkeypatch.setattr(provenance, "CGROUP", tmp_path)
    monkeypatch.setattr(provenance, "MEMINFO", tmp_path / "meminfo")
    assert provenance.free_memory() == free
