"""The device of a worker: its share of it, and the memory it has."""

from diffedit_batch.config import JobConfig


def prepare_device(config: JobConfig, num_threads: int | None) -> str:
    """Name the device this process computes on, and keep to its share of it.

    Args:
        config: the job.
        num_threads: CPU threads; None leaves torch's choice.
    """
    import torch

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if config.device == "cpu":
        return "cpu"
    if config.cluster.gpus_per_worker < 1:
        # Else the first worker on a GPU takes the memory of the others when it sizes its calls.
        torch.cuda.set_per_process_memory_fraction(config.cluster.gpus_per_worker)
    return torch.cuda.get_device_name()


def gpu_memory(device: str) -> tuple[int, int]:
    """Bytes of the GPU that are in use, and all of them; 0 and 0 on a CPU."""
    import torch

    if device == "cpu":
        return 0, 0
    free, total = torch.cuda.mem_get_info()
    return total - free, total
