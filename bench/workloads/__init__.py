"""The workloads, in the order in which they run."""

from __future__ import annotations

from bench.workload import Workload

from .clone import Clone
from .cold import Cold, ColdWalked, Walk
from .coldread import ColdRead
from .firstwrite import FirstWrite
from .importing import ImportLarge, ImportMixed
from .lookup import Lookup, Readdir
from .memory import Memory
from .mmapread import MmapRead
from .mount import Mount, Seal
from .openclose import OpenClose
from .overwrite import Overwrite
from .random import Random
from .readers import Readers
from .seqread import SequentialRead
from .warm import Warm
from .willneed import WillNeed

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        SequentialRead(),
        MmapRead(),
        Random(),
        Overwrite(),
        FirstWrite(),
        Mount(),
        Seal(),
        Cold(),
        ColdWalked(),
        Walk(),
        ColdRead(),
        Warm(),
        WillNeed(),
        OpenClose(),
        Lookup(),
        Readdir(),
        Readers(),
        Memory(),
        Clone(),
        ImportLarge(),
        ImportMixed(),
    )
}
