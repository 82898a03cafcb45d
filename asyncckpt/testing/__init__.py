"""Test support: a disk that fails on request, for programs that save, and a contract for stores of checkpoints."""

from asyncckpt.testing.faulty_disk import OPERATIONS, FaultyDisk, Operation
from asyncckpt.testing.storage_contract import StorageContract

__all__ = ["OPERATIONS", "FaultyDisk", "Operation", "StorageContract"]
