"""The machines that recipes target: properties of one device, from the manufacturer's data sheet."""

from dataclasses import dataclass

from finetune.config.validate import Machine


@dataclass(frozen=True)
class MachineFacts:
    """Memory of one device in bytes, and its dense 16-bit matrix throughput in floating-point operations per second.

    `peak_flops` is None if no figure is published for this kind of work; then only a probe can predict the time.
    """

    title: str
    memory_bytes: int
    peak_flops: float | None


# Sources: NVIDIA H200 and H100 data sheets (SXM: 1,979 TFLOPS bfloat16 with sparsity, half of it dense); A100 data
# sheet (312); RTX 4090: Ada architecture white paper (165 with float32 accumulation), the fastest common card with 24
# GB. A GPU's memory is what its driver reports (nvidia-smi, MiB), a server's that of the complete machine, a Mac's what
# Metal recommends at most (recommendedMaxWorkingSetSize, as llama.cpp logs it: github.com/ollama/ollama/issues/434).
MACHINES: dict[Machine, MachineFacts] = {
    "h200": MachineFacts("NVIDIA H200 141 GB", 143_771 * 2**20, 989e12),
    "h100": MachineFacts("NVIDIA H100 80 GB", 81_559 * 2**20, 989e12),
    "a100-80gb": MachineFacts("NVIDIA A100 80 GB", 81_920 * 2**20, 312e12),
    "gpu-24gb": MachineFacts("a GPU of 24 GB (RTX 4090)", 24_564 * 2**20, 165e12),
    "mac-32gb": MachineFacts("Mac with 32 GB (M4)", 21_845 * 2**20, None),
    "mac-16gb": MachineFacts("Mac with 16 GB", 10_922 * 2**20, None),
    "cpu-48-64gb": MachineFacts("server with 48 cores, 64 GB", 64 * 2**30, None),
}
