"""Several processes that call a function together, as `torchrun` would start them."""

import itertools
import multiprocessing
import os
import pickle
import socket
import tempfile
import warnings
from pathlib import Path

import torch


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(n_workers, function, *args, **variables):
    """Start processes that call ``function(rank, *args)``; returns them and where results go."""
    folder, port = tempfile.mkdtemp(), free_port()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=work, args=(rank, n_workers, port, folder, function, args, variables)
        )
        for rank in range(n_workers)
    ]
    for each in processes:
        each.start()
    return processes, [Path(folder, str(rank)) for rank in range(n_workers)]


def launch(n_workers, function, *args, **variables):
    """The results of ``function(rank, *args)`` in each of several processes."""
    processes, files = start(n_workers, function, *args, **variables)
    for each in processes:
        each.join(240)
        assert each.exitcode == 0, each.exitcode
    return [pickle.loads(each.read_bytes()) for each in files]


def work(rank, n_workers, port, folder, function, args, variables):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(n_workers), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ.update(variables)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result = function(rank, *args)
    Path(folder, str(rank)).write_bytes(pickle.dumps(result))


def cut(cuts, *arrays):
    """The rows of each worker."""
    return [tuple(each[a:b] for each in arrays) for a, b in itertools.pairwise(cuts)]
