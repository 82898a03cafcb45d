"""Fuzzing what reads untrusted bytes: random bytes in, a value or a CheckpointError out.

`python -m tests.reliability.fuzz TARGET --seconds N` searches with atheris, guided by coverage, if it is installed
(the extra `fuzz`), and else with the seeded mutator below, which the rig uses, too. Each input's digest is made to
match. A new format adds its reader to `TARGETS` and some good files to `corpus`, or itself to `fuzz_files.py`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import msgpack
import numpy as np
import xxhash

from .forged_checkpoints import STEP, chunk, entries, ext
from .fuzz_files import FILE_TARGETS, good_inputs, read_input
from .hostile import memory_bound, touch
from .rig import Result, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_NBYTES: Final = 1 << 14
_SECONDS: Final = 10  # for one input of a few KiB
_ADDRESSES: Final = 2 << 30  # beyond which nothing is allocated, so that the machine survives
_INPUTS: Final = 10_000  # of a unit
_FILES: Final = 2_000  # where each is a file


class _TooSlowError(BaseException):
    """An input took too long."""


def read_manifest(data: bytes, folder: Path) -> None:  # noqa: ARG001 - it needs none
    """Decode a manifest with these contents."""
    from asyncckpt.disk.manifest import decode_manifest
    from asyncckpt.errors import CheckpointError

    try:
        decode_manifest(data + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(data).encode(), STEP)
    except CheckpointError:
        return


def read_index(data: bytes, folder: Path) -> None:  # noqa: ARG001 - it needs none
    """Decode an index, walk its tree, and make what it says, from arrays of zeros."""
    from asyncckpt.errors import CheckpointError
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.decode import Decoder
    from asyncckpt.state.index import decode_index

    try:
        index, _ = decode_index(memoryview(data), file_nbytes=1 << 16, pacer=Pacer(yields=False), other_files={"f": 1})
        decoder = Decoder(index, Pacer(yields=False))
        decoder.plan()
        arrays = {number: np.zeros(meta.shape, meta.dtype) for number, meta in enumerate(index.arrays)}
        touch(decoder.decode(arrays))
    except CheckpointError:
        return


TARGETS: Final[dict[str, Callable[[bytes, Path], None]]] = {
    "manifest": read_manifest,
    "index": read_index,
    **{name: functools.partial(read_input, name) for name in FILE_TARGETS},
}
"""What reads an input, and may use a folder."""


def corpus(target: str) -> list[bytes]:
    """Return good inputs to begin with."""
    if target in FILE_TARGETS:
        return good_inputs(target)
    if target == "manifest":
        files = {"state.msgpack": {"nbytes": 5, "xxh3_128": "00" * 16}, "a/b": {"nbytes": 0, "xxh3_128": ""}}
        content = {"format_version": 1, "step": STEP, "created": 1.5, "block_nbytes": 1 << 20, "files": files}
        place = {"file": "state.msgpack", "offset": 0, "nbytes": 5}
        return [json.dumps(content | {"index": index}).encode()[:-1] for index in (None, place)]
    nodes = [
        [ext(3, 3), "a", ext(9, 0), 5, ext(1, 2), None, 1.5, ext(2, 1), msgpack.ExtType(11, b"\xff" * 9)],
        [ext(1, 4), ext(10, ("<f4", b"abcd")), ext(12, (1.0, 2.0)), ext(13, 1), ext(14, 1)],
        [ext(2, 3), ext(15, (1, "<i8", bytes(16))), ext(16, (2, 2)), ext(6, (1, 3)), b"x"],
        [ext(1, 3), ext(8, "bytearray"), b"ab", ext(8, "path"), "x", ext(8, "timedelta"), ext(2, 3), 1, 2, 3],
        [ext(8, "seed_sequence"), ext(3, 3), "entropy", 5, "spawn_key", ext(2, 0), "pool_size", 4],
        [ext(4, 2), 1, ext(5, 1), 2],
    ]
    dtypes = ["<f4", "|u1", {"fields": [["x", "<i2", 0, None]], "itemsize": 2, "aligned": False, "record": False}]
    rows = msgpack.packb([[0, 4], [1, 16], [2, 3]])
    table = np.array([[0, 4096, 16], [1, 8192, 16], [2, 9000, 6]], "<u8").tobytes()
    return [
        msgpack.packb(entries(dtypes=dtypes, tree=[chunk(*each)], arrays=[rows], segments=[table])) for each in nodes
    ]


# --- without atheris --------------------------------------------------------------------------------------------------

_TOKENS: Final = (
    *(bytes([byte]) for byte in (0x80, 0x81, 0x90, 0x91, 0xC0, 0xC1, 0xC4, 0xC7, 0xCF, 0xD4, 0xDC, 0xDD, 0xDF)),
    b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7, b"{", b"}", b"[", b"]", b'"', b",",
    b":", b"null", b"1e999", b"-1", b"../", b"\\ud800", b"99999999999999999999", b"NaN",
)  # fmt: skip


def mutate(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Change an input at a few places."""
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 4, 16)))
        other = chance.choice(others)
        piece_of = other[chance.randrange(len(other)) :][: chance.choice((1, 4, 16, 64))]
        flipped = bytes(byte ^ 1 << chance.randrange(8) for byte in data[at:end])
        new = chance.choice(
            (flipped, b"", data[at:end] * 2, chance.choice(_TOKENS), piece_of, chance.randbytes(end - at))
        )
        data = data[:at] + new + data[end if chance.random() < 0.7 else at :]
    return data[:_MAX_NBYTES]


def first_inputs(target: str, seed: str) -> dict[bytes, None]:
    """Give the inputs of a unit, each once."""
    number = _FILES if target in FILE_TARGETS else _INPUTS
    return dict.fromkeys(itertools.islice(inputs(target, seed), number))


def inputs(target: str, seed: str) -> Iterator[bytes]:
    """Give inputs, for ever; some grow out of earlier ones."""
    chance = random.Random(f"{target} {seed}")  # noqa: S311 - seeded on purpose
    pool = corpus(target)
    while True:
        made = mutate(chance.choice(pool), pool, chance)
        if chance.random() < 0.05 and made:
            pool = [*pool[-200:], made]
        yield made


def try_input(target: str, data: bytes, folder: Path) -> str | None:
    """Read an input; return what went wrong, if something did: any other error, too much time, too much memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak()
    signal.alarm(_SECONDS)
    try:
        TARGETS[target](data, folder)
    except BaseException as error:  # noqa: BLE001 - any but a CheckpointError is a loss
        return f"{data.hex()}: {error!r:.200}"
    finally:
        signal.alarm(0)
    grown = _peak() - before
    if grown > memory_bound(len(data), is_refused=False):
        return f"{data.hex()}: {len(data)} bytes became {grown >> 20} MiB"
    return None


def _peak() -> int:
    """Return how much memory this process has had at most since its peak was set back, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


def _limit() -> None:
    def too_slow(*_: object) -> None:
        raise _TooSlowError

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))


class FuzzRig(Rig):
    """The seeded mutator."""

    name: ClassVar[str] = "fuzz"
    tries: ClassVar[str] = "good manifests, indexes and keyed files, changed at random, with digests that match"
    cases: ClassVar[str] = "inputs"
    quick: ClassVar[int] = 30_000
    goal: ClassVar[int] = 1_000_000

    def units(self, seed: int) -> Iterator[str]:
        """Give one for each target."""
        yield from (f"{target}/{seed}" for target in TARGETS)

    def run(self, unit: str, scratch: Path) -> Result:
        """Try many inputs: those that no seed before has had, which makes them again to see that."""
        _limit()
        target, _, seed = unit.partition("/")
        before: set[bytes] = set()
        for number in range(1, int(seed)):
            before.update(map(_digest, first_inputs(target, str(number))))
        result = Result()
        for data in first_inputs(target, seed):
            if result.has_enough:
                break
            if _digest(data) not in before:
                result.tried += 1
                problem = try_input(target, data, scratch)
                result.losses += [problem] if problem is not None else []
        result.count(target, result.tried)
        return result


# --- the command line -------------------------------------------------------------------------------------------------


def main() -> int:
    """Search for the time given; return 1 at the first input that goes wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", default="1")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is not None:
        return _search_guided(options.target, int(options.seconds), options.seed)
    _limit()
    end, count = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        for data in inputs(options.target, options.seed):
            count += 1
            if (problem := try_input(options.target, data, Path(folder))) is not None:
                print(problem)
                return 1
            if time.monotonic() > end:
                break
    print(f"{count} inputs, without atheris")
    return 0


def _search_guided(target: str, seconds: int, seed: str) -> int:
    import atheris

    for name in [name for name in sys.modules if name.partition(".")[0] == "asyncckpt"]:
        del sys.modules[name]  # to be imported again, with its branches counted
    with atheris.instrument_imports(include=["asyncckpt"]):
        import asyncckpt.disk.manifest
        import asyncckpt.keyed.hdf5.store
        import asyncckpt.keyed.json.store
        import asyncckpt.keyed.log.store
        import asyncckpt.keyed.npz.store
        import asyncckpt.state.decode  # noqa: F401 - imported for the readers
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        for number, data in enumerate(corpus(target)):
            (Path(folder) / str(number)).write_bytes(data)
        flags = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={_MAX_NBYTES}", "-rss_limit_mb=1024"]
        atheris.Setup(
            [sys.argv[0], folder, f"-timeout={_SECONDS}", *flags], lambda data: TARGETS[target](data, Path(other))
        )
        atheris.Fuzz()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
