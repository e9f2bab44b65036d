"""Published benchmarks of language models by one command."""

from __future__ import annotations

from lightning_unlearn.benchmarks.copyright import CopyrightBenchmark
from lightning_unlearn.benchmarks.detox import DetoxBenchmark
from lightning_unlearn.benchmarks.language import LanguageBenchmark, Protocol, bench_language
from lightning_unlearn.benchmarks.muse import MUSEBenchmark
from lightning_unlearn.benchmarks.tofu import TOFUBenchmark
from lightning_unlearn.benchmarks.wmdp import WMDPBenchmark

__all__ = [
    "CopyrightBenchmark",
    "DetoxBenchmark",
    "LanguageBenchmark",
    "MUSEBenchmark",
    "Protocol",
    "TOFUBenchmark",
    "WMDPBenchmark",
    "bench_language",
]
