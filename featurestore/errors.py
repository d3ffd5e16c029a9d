"""Every error that onceflow raises on purpose.

OnceflowError
├── DefinitionError        a source, view, service or label that cannot work; raised when the module is loaded
├── ConfigError            a setting, argument or file that the user gave
├── DataError              events or rows that cannot be read as they should
├── StateError             stored state that cannot be used
│   ├── FormatError        written by another version, torn, or not ours
│   ├── FencedError        another worker owns the partition now
│   └── GapError           a batch that does not start at the stored next offset
└── UnavailableError       Kafka, Redis or another server cannot be reached

Messages say what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class OnceflowError(Exception):
    """Base of every error raised on purpose."""


class DefinitionError(OnceflowError):
    """A definition that cannot work: the message names it, the mistake and the fix."""


class ConfigError(OnceflowError):
    """A setting, an argument or a file that the user gave and that cannot be used."""


class DataError(OnceflowError):
    """Events or rows that cannot be read as their source says."""


class StateError(OnceflowError):
    """Stored state that cannot be used."""


class FormatError(StateError):
    """State written by another version, torn, or not ours; nothing was overwritten."""


class FencedError(StateError):
    """Another worker has claimed the partition: this one must stop writing."""


class GapError(StateError):
    """A batch does not start at the stored next offset: events would be lost."""


class UnavailableError(OnceflowError):
    """A server cannot be reached."""
