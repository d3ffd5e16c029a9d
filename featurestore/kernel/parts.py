"""How Numba compiles what the kernel calls: as parts, which become machine code only within what Python calls.

By itself Numba optimises each function, with all that it calls, and makes machine code of it, and once more as a part
of each of its callers. Of a hundred small functions that call each other that was half of the time to compile.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.typed_passes import NopythonTypeInference

# What Python finds at a part when it calls it: this takes no arguments, and raises a TypeError.
_REFUSAL = ctypes.cast(ctypes.pythonapi.PyErr_BadArgument, ctypes.c_void_p).value


class _PartLibrary(JITCodeLibrary):
    """Code that waits to be linked into other code."""

    def finalize(self) -> None:
        """Link what the part calls, and leave all else to whom it becomes a part of."""
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)  # noqa: SLF001
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)  # noqa: SLF001
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int | None:  # noqa: ARG002
        """There is no machine code."""
        return _REFUSAL

    @property
    def codegen(self) -> _PartLibrary:
        """Who is to be told of the function's environment."""
        return self

    def set_env(self, name: str, environment: Any) -> None:  # noqa: ANN401
        """Only machine code would use it."""


@register_pass(mutates_CFG=False, analysis_only=False)
class _TakePartLibrary(FunctionPass):
    """Let the function's code go to such a library."""

    _name = "take_part_library"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:  # noqa: ANN401
        """Make it."""
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return True


class EntryCompiler(Compiler):
    """Numba's compiler, not held up by Python's garbage collector, which finds nothing in all that it holds."""

    def compile_extra(self, func: Any) -> Any:  # noqa: ANN401
        """Compile a function, and whatever it calls."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(func)
        finally:
            if collects:
                gc.enable()


class PartCompiler(CompilerBase):
    """Numba's compiler, but for the library."""

    def define_pipelines(self) -> list[Any]:
        """One way to compile."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_TakePartLibrary, NopythonTypeInference)
        passes.finalize()
        return [passes]
