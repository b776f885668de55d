"""What is held frozen, and by which callback: the one place that sets ``requires_grad`` and train/eval modes.

Each callback *holds* the parameters that it wants frozen. A parameter is frozen while any callback holds it, and gets
its own ``requires_grad`` back when the last one releases it. So callbacks combine in any order, a statically frozen
layer stays frozen when a schedule passes over it, and what the user or the model had frozen at construction is never
unfrozen.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch.nn import Module, Parameter


class Holds:
    """The parameters and modules of one model that are held frozen, by owner.

    Args:
        as_given: Makes a context in which ``requires_grad`` stands as it does outside of ``toggle_optimizer``.
    """

    def __init__(self, as_given: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._as_given = as_given
        self._owned: dict[Hashable, tuple[dict[Parameter, None], list[Module]]] = {}
        self._given: dict[Parameter, bool] = {}
        # Modules go by identity: the hash of a torchmetrics metric changes with its state.
        self._held_modules: dict[int, Module] = {}
        self._in_train_mode: dict[int, Module] = {}
        self._replacements: dict[int, Module] = {}

    def hold(self, owner: Hashable, parameters: Iterable[Parameter], modules: Iterable[Module] = ()) -> bool:
        """Replace what ``owner`` holds; returns whether the set of trainable parameters changed.

        Args:
            owner: The callback, compared by equality.
            parameters: All parameters that the owner wants frozen from now on.
            modules: All modules that the owner wants in eval mode from now on.
        """
        self._owned[owner] = (dict.fromkeys(parameters), list(modules))
        with self._as_given():
            return self._settle()

    def release(self, owner: Hashable) -> bool:
        """Release everything that ``owner`` holds; returns whether the set of trainable parameters changed."""
        self._owned.pop(owner, None)
        with self._as_given():
            return self._settle()

    def holders(self, parameter: Parameter) -> list[Hashable]:
        """The owners that hold a parameter."""
        return [owner for owner, (parameters, _) in self._owned.items() if parameter in parameters]

    def can_train(self, parameter: Parameter, owner: Hashable) -> bool:
        """Whether a parameter would train if ``owner`` alone released it."""
        given = self._given.get(parameter, parameter.requires_grad)
        return given and all(holder == owner for holder in self.holders(parameter))

    def given(self, parameter: Parameter) -> bool:
        """The parameter's own ``requires_grad``: whether it would train if nothing held it."""
        return self._given.get(parameter, parameter.requires_grad)

    def unfreeze(self, parameters: Iterable[Parameter]) -> Callable[[], None]:
        """Let parameters train that the module itself had frozen, as far as nothing holds them.

        Args:
            parameters: Any parameters; those that cannot require grad stay as they are.

        Returns:
            What gives them back their own ``requires_grad``.
        """
        frozen = [p for p in parameters if not self.given(p) and p.is_floating_point()]
        self._give(frozen, True)
        return lambda: self._give(frozen, False)

    def _give(self, parameters: Iterable[Parameter], value: bool) -> None:
        for parameter in parameters:
            if parameter in self._given:
                self._given[parameter] = value
            else:
                parameter.requires_grad_(value)

    def modules(self) -> list[Module]:
        """Every module that any callback wants in eval mode."""
        return list(self._held_modules.values())

    def unfrozen(self) -> list[Parameter]:
        """Held parameters that something else has set to ``requires_grad=True``."""
        return [parameter for parameter in self._given if parameter.requires_grad]

    def set_eval_mode(self) -> None:
        """Put every held module in eval mode, remembering which ones were in train mode.

        To be called before each training batch, not only once: a user's own ``train()`` undoes it. (And not before
        training starts, where Lightning warns of modules in eval mode.)
        """
        for module in self._held_modules.values():
            if module.training:
                self._in_train_mode[id(module)] = module
                module.training = False

    def follow(self, replaced: Sequence[tuple[Module, Module]]) -> None:
        """Hold other modules in place of some that a strategy has replaced in the model (``SyncBatchNorm``).

        Args:
            replaced: Pairs of the old module and the new one.
        """
        self._replacements.update({id(old): new for old, new in replaced})
        self._held_modules = self._current(self._held_modules.values())
        self._in_train_mode = self._current(self._in_train_mode.values())

    def _current(self, modules: Iterable[Module]) -> dict[int, Module]:
        now = (self._replacements.get(id(module), module) for module in modules)
        return {id(module): module for module in now}

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Give all held parameters their own ``requires_grad`` within a context."""
        try:
            for parameter, given in self._given.items():
                parameter.requires_grad_(given)
            yield
        finally:
            for parameter in self._given:
                parameter.requires_grad_(False)

    @contextmanager
    def lifted_with_modes(self) -> Iterator[None]:
        """Give all held parameters and modules their own ``requires_grad`` and mode within a context."""
        modules = [module for module in self._in_train_mode.values() if not module.training]
        with self.lifted():
            try:
                for module in modules:
                    module.training = True
                yield
            finally:
                for module in modules:
                    module.training = False

    def _settle(self) -> bool:
        parameters = {p: None for held, _ in self._owned.values() for p in held}
        modules = self._current(module for _, held in self._owned.values() for module in held)
        before = {p for p, given in self._given.items() if given}
        for parameter in [p for p in self._given if p not in parameters]:
            parameter.requires_grad_(self._given.pop(parameter))
        for parameter in parameters:
            if parameter not in self._given:
                self._given[parameter] = parameter.requires_grad
                parameter.requires_grad_(False)
                parameter.grad = None
        for key in self._in_train_mode.keys() - modules.keys():
            self._in_train_mode.pop(key).training = True
        self._held_modules = modules
        return before != {p for p, given in self._given.items() if given}
