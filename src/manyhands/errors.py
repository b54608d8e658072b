"""Every error manyhands raises, split by who can put it right.

::

    ManyhandsError
    ├── UserError             the script: a call or a value that cannot work
    │   ├── StrategyError       a strategy with a value that makes no sense
    │   ├── DataError           a data set that cannot be partitioned, or differs between workers
    │   ├── ModelError          a model that cannot be shared, or differs between workers
    │   └── Unencodable         values that the strategy's encoding cannot carry
    ├── ConfigurationError    the environment, the command line or a token
    │   ├── Refused             the hub will not have this worker, and says why
    │   └── VersionMismatch     hub and worker run different versions of manyhands
    ├── MachineError          the machine: a port in use, a full disk, a hub that is not there
    │   ├── HubUnreachable
    │   ├── PortInUse
    │   ├── JournalError
    │   └── CheckpointError     a checkpoint that cannot be kept or read
    │       └── Damaged           what was kept is not what is there
    ├── PeerError             another process: a malformed message, a broken connection
    │   └── WireError
    ├── RunLost               every member that held the committed version is gone
    ├── RunOver               the run this worker wants to join has finished
    └── ProtocolError         manyhands itself: an event that cannot happen in this state

A message names the thing, the value and the remedy. Where nobody catches one, it is shown with the lines
of the script that led to it, without ours, unless it is ours to put right.
"""

from __future__ import annotations

import sys
from types import TracebackType


class ManyhandsError(Exception):
    """The root of all errors raised by manyhands."""


class UserError(ManyhandsError):
    """The script asks for something that cannot work."""


class StrategyError(UserError, ValueError):
    """A strategy has a value that makes no sense."""


class DataError(UserError, ValueError):
    """A data set cannot be partitioned, or is not the one the other workers have."""


class ModelError(UserError, ValueError):
    """A model cannot be shared, or is not the one the other workers have."""


class Unencodable(UserError, ValueError):
    """A contribution holds values that its encoding cannot carry."""


class ConfigurationError(ManyhandsError):
    """The environment, the command line or a token is wrong."""


class Refused(ConfigurationError):
    """The hub will not have this worker, and says why."""


class VersionMismatch(Refused):
    """Hub and worker run different versions of manyhands."""


class MachineError(ManyhandsError):
    """The machine cannot do what is needed: a port, a disk, a network."""


class HubUnreachable(MachineError):
    """No hub answers at the address."""


class PortInUse(MachineError):
    """Another process listens on the port."""


class JournalError(MachineError):
    """The run's journal cannot be written or read."""


class CheckpointError(MachineError):
    """A checkpoint is torn or damaged, or its store cannot be written or read."""


class Damaged(CheckpointError):
    """A checkpoint is torn, or its files are not what its manifest says."""


class PeerError(ManyhandsError):
    """Another process misbehaved or went away."""


class WireError(PeerError):
    """A message is malformed, too large, of another run, or its checksum is wrong."""


class RunLost(ManyhandsError):
    """Every member that held the committed version is gone."""


class RunOver(ManyhandsError):
    """The run this worker wants to join has finished."""


class ProtocolError(ManyhandsError):
    """An event that cannot happen in this state: a fault in manyhands itself; carries the history."""


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this package."""
    if trace is None:
        return None
    inner, frame = _without_ours(trace.tb_next), trace.tb_frame
    if str(frame.f_globals.get("__name__")).startswith("manyhands."):
        return inner
    return TracebackType(inner, frame, trace.tb_lasti, trace.tb_lineno)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, ManyhandsError) and not isinstance(error, ProtocolError):
        error = error.with_traceback(trace := _without_ours(trace))
    _show_any(kind, error, trace)


_show_any, sys.excepthook = sys.excepthook, _show
